//! The contexts over their ledger, without anything else of a sidecar.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use bytes::Bytes;

use crate::model::event::Usage;
use crate::model::id::{CallerId, ContextKey, Tenant, ThreadId, TurnId};
use crate::model::refusal::Refusal;
use crate::model::request::BusyPolicy;
use crate::registry::ledger::{
    Change, Durability, Kept, KeptEnd, KeptThreadStarted, KeptTurn, Ledger,
};
use crate::registry::threads::ThreadFacts;
use crate::turn::admission::{Admission, AdmissionLimits, Entrant};
use crate::turn::contexts::{ContextLimits, Contexts};

/// The contexts that a ledger keeps.
#[derive(Debug)]
pub struct KeptContexts {
    contexts: Arc<Contexts>,
    admission: Arc<Admission>,
    ledger: Arc<Ledger>,
    retained: Mutex<VecDeque<TurnId>>,
}

/// How many turns are retained.
const RETAINED: usize = 1000;

/// About as large as the two events are that are kept of a turn.
const THREAD_STARTED_BYTES: usize = 120;
const TERMINAL_BYTES: usize = 600;

fn key(context_id: &str) -> ContextKey {
    ContextKey {
        tenant: Tenant::default(),
        context_id: context_id.to_owned(),
        thread_key: "codex_thread_id".to_owned(),
    }
}

impl KeptContexts {
    /// Opens the ledger of this path, or none, and takes in what it has kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn open(path: Option<&Path>, durability: Durability) -> Result<KeptContexts, String> {
        let ledger = Arc::new(match path {
            Some(path) => Ledger::in_file(path.to_owned(), durability),
            None => Ledger::memory(),
        });
        let limits =
            AdmissionLimits { max_waiting_turns: usize::MAX, ..AdmissionLimits::default() };
        let admission = Admission::new(limits);
        let limit = ContextLimits { max_contexts: usize::MAX, ..ContextLimits::default() };
        let contexts = Contexts::new(Arc::clone(&ledger), Arc::clone(&admission), limit);
        let contexts = Arc::new(contexts);
        let restoring = Arc::clone(&contexts);
        let restore = move |kept| {
            if let Kept::Binding(binding) = kept {
                restoring.restore(*binding);
            }
        };
        ledger.open(Box::new(restore)).await.map_err(|error| error.to_string())?;
        contexts.restored();
        Ok(KeptContexts { contexts, admission, ledger, retained: Mutex::default() })
    }

    /// How many contexts are bound.
    pub fn count(&self) -> usize {
        self.contexts.count()
    }

    /// Binds a context to a thread as `BindContext` does.
    ///
    /// # Errors
    /// Why it is not bound.
    pub async fn bind(&self, context_id: &str, thread_id: &str) -> Result<(), Refusal> {
        let (key, thread_id) = (key(context_id), ThreadId::from_codex(thread_id));
        let reserved = self.contexts.reserve_to_bind(&key, &thread_id).await?;
        self.contexts.bind(&key, &thread_id, None, &reserved).await.map(drop)
    }

    /// The thread of a context.
    pub fn get(&self, context_id: &str) -> Option<String> {
        Some(self.contexts.get(&key(context_id)).ok()?.thread_id.to_string())
    }

    /// How many contexts there are on the page after a context.
    pub fn page(&self, after: Option<&str>, limit: usize) -> usize {
        let after = after.map(|context_id| (context_id.to_owned(), key("").thread_key));
        self.contexts.page(&Tenant::default(), None, after.as_ref(), limit).len()
    }

    /// All that one turn of a context changes and keeps, in the order in which a turn does it, and waited
    /// for where a turn waits.
    ///
    /// # Errors
    /// Why it can't run.
    pub async fn turn(&self, context_id: &str) -> Result<(), Refusal> {
        let (key, turn_id, now) = (key(context_id), TurnId::generate(), SystemTime::now());
        let entrant = Entrant {
            tenant: key.tenant.clone(),
            caller: CallerId::default(),
            context: Some(key.clone()),
            thread: None,
            follows_context: true,
            policy: BusyPolicy::Queue,
            turn: Weak::new(),
            bytes: 0,
        };
        let ticket = self.admission.admit(|_| Ok(entrant), || ())?;
        let start = Change::StartTurn(Box::new(KeptTurn {
            turn_id: turn_id.clone(),
            context: Some(key.clone()),
            created_at: now,
            started_at: now,
            requests: Vec::new(),
            thread_started: None,
            reserved: 4096,
            end: None,
        }));
        self.ledger.try_write(vec![start], vec![Change::ForgetTurn(turn_id.clone())]).await?;
        let thread_id = self.contexts.get(&key)?.thread_id;
        let facts = ThreadFacts { usage: Some(Usage::default()), ..ThreadFacts::default() };
        self.contexts.bind_for_turn(Some(&key), &ticket, &thread_id, &facts);
        self.contexts.note_turn(&key, &turn_id);
        self.contexts.keep_facts(&thread_id, &facts);
        let told = KeptThreadStarted {
            thread_id: thread_id.clone(),
            worker: Some("w0".to_owned()),
            sequence: 1,
            event: Bytes::from_static(&[7; THREAD_STARTED_BYTES]),
        };
        self.ledger.write(vec![Change::ThreadStarted(turn_id.clone(), told)]).await?;
        self.contexts.keep_facts(&thread_id, &facts);
        self.contexts.note_end(&key);
        let event = Bytes::from_static(&[7; TERMINAL_BYTES]);
        let end = KeptEnd { ended_at: SystemTime::now(), sequence: 20, event };
        self.ledger.write(vec![Change::EndTurn(turn_id.clone(), end)]).await?;
        drop(ticket);
        let forgotten = {
            let mut retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
            retained.push_back(turn_id);
            if retained.len() > RETAINED { retained.pop_front() } else { None }
        };
        if let Some(forgotten) = forgotten {
            self.ledger.note(&[Change::ForgetTurn(forgotten)]);
        }
        Ok(())
    }

    /// Keeps what is not kept yet, and lets go of the file.
    pub async fn close(self) {
        self.ledger.close().await;
    }
}
