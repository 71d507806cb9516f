//! The sidecar in memory: from a request to the events of its turn, over workers that the test plays.

mod faults_worker;
