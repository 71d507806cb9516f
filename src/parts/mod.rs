//! The parts, for the tests and benchmarks that stand outside of the crate. Nobody else can count on
//! anything here.

mod kept_contexts;

pub mod app {
    pub use crate::app::{App, BoundAddress, READINESS_SERVICE, ServeError};
}

pub mod app_server {
    pub mod baseline {
        pub use crate::app_server::baseline::{Baseline, Lingering};
    }
    pub mod client {
        pub use crate::app_server::client::{
            CliDefaults, Client, LoadOptions, LoadThread, StartTurn, Task, Terminal,
        };
    }
    pub mod decode {
        pub use crate::app_server::decode::{News, TurnEnd};
    }
    pub mod mcp {
        pub use crate::app_server::mcp::ConfigRead;
    }
    pub mod message {
        pub use crate::app_server::message::{Inbound, Line, Told, parse};
    }
    pub mod peer {
        pub use crate::app_server::peer::{Peer, PeerLimits};
    }
}

pub mod codex_cli {
    pub use crate::codex_cli::{find, install, version};
}

pub mod access {
    pub use crate::access::{Credentials, TokenHash};
}

pub mod config {
    pub use crate::config::{ApiKey, Config, ListenAddress, LogFormat, TlsFiles, ToolDefaults};
}

pub mod model {
    pub mod event {
        pub use crate::model::event::Event;
    }
    pub mod failure {
        pub use crate::model::failure::TurnError;
    }
    pub mod id {
        pub use crate::model::id::TurnId;
    }
    pub mod options {
        pub use crate::model::options::{
            ApprovalPolicy, ApprovalsReviewer, DynamicTool, Environment, SandboxMode,
            ThreadOptions, WebSearchMode,
        };
    }
    pub mod policy {
        pub use crate::model::policy::{ImagePolicy, OwnKeys, Policy};
    }
    pub mod request {
        pub use crate::model::request::{ReviewTarget, UserInput, Work};
    }
    pub mod workspace {
        pub use crate::model::workspace::Workspace;
    }
}

pub mod offline_model {
    pub use crate::offline_model::OfflineModel;
}

pub mod process {
    pub use crate::process::{
        Moment, Pipes, Process, ProcessSpec, adopt_orphans, clear_leftovers, describe,
        instance_variable, kill_started_since, resident_bytes,
    };
}

pub mod registry {
    pub use super::kept_contexts::KeptContexts;
    pub use crate::registry::ledger::{Durability, StatePath};
}

pub mod telemetry {
    pub use crate::telemetry::init;
}

pub mod worker {
    pub mod settings {
        pub use crate::worker::settings::WorkerSettings;
    }
}
