//! The events of one turn over as many connections as it takes.
//!
//! A connection that breaks is the end of a stream and not of its turn: `AttachTurn` goes on after the
//! last event that was seen, and a call that broke before its first event is made again where its
//! `request_id` makes that safe.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use tokio::time::Instant;

use super::sidecar::{Events as _, Sidecar};
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::attach_turn_request::Target;

/// How long a lost turn is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same of one that does not outlive its connection: all there is to learn is how it ended.
const PATIENCE_FOR_THE_END: Duration = Duration::from_secs(5);
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// How the events of a turn are come by.
#[derive(Debug)]
pub(in crate::cli) enum Begin {
    /// The turn is begun.
    Run(Box<pb::RunTurnRequest>),
    /// It is joined.
    Attach(pb::AttachTurnRequest),
}

/// What comes of a turn.
#[derive(Debug)]
pub(super) enum Next {
    Event(Box<pb::TurnEvent>),
    /// The connection broke; it is being made again.
    Lost,
    /// It was made again.
    Found,
    /// Nothing more comes.
    End,
}

pub(super) struct Connection<S: Sidecar> {
    sidecar: S,
    begin: Begin,
    rejoins: bool,
    /// Empty before the first event.
    turn_id: String,
    /// Number of the last event.
    seen: u64,
    state: State<S>,
    /// Since when the connection is gone.
    lost: Option<Lost>,
}

struct Lost {
    since: Instant,
    delay: Duration,
}

type Opening<S> = LocalBoxFuture<'static, Result<<S as Sidecar>::Events, Refused>>;

enum State<S: Sidecar> {
    Opening(Opening<S>),
    Open(S::Events),
}

impl<S: Sidecar> Connection<S> {
    pub(super) fn new(sidecar: S, begin: Begin, rejoins: bool) -> Connection<S> {
        let (turn_id, seen) = match &begin {
            Begin::Attach(pb::AttachTurnRequest { target, after_sequence }) => match target {
                Some(Target::TurnId(turn_id)) => (turn_id.clone(), *after_sequence),
                _ => (String::new(), *after_sequence),
            },
            Begin::Run(_) => (String::new(), 0),
        };
        let state = State::Opening(open(&sidecar, &begin, "", seen, Duration::ZERO));
        Connection { sidecar, begin, rejoins, turn_id, seen, state, lost: None }
    }

    /// What comes next. May be given up at any time, and goes on where it was.
    pub(super) async fn next(&mut self) -> Result<Next, Refused> {
        loop {
            let result = match &mut self.state {
                State::Opening(opening) => match opening.await {
                    Ok(events) => {
                        self.state = State::Open(events);
                        match self.lost.take() {
                            Some(_) => return Ok(Next::Found),
                            None => continue,
                        }
                    }
                    Err(refused) => Err(refused),
                },
                State::Open(events) => events.next().await,
            };
            match result {
                Ok(Some(event)) => {
                    self.turn_id.clone_from(&event.turn_id);
                    self.seen = event.sequence;
                    return Ok(Next::Event(Box::new(event)));
                }
                Ok(None) => return Ok(Next::End),
                Err(refused) => {
                    let is_news = self.lost.is_none();
                    self.look_again(refused)?;
                    if is_news {
                        return Ok(Next::Lost);
                    }
                }
            }
        }
    }

    /// Begins to look for the turn once more, if that makes sense and there is time.
    fn look_again(&mut self, refused: Refused) -> Result<(), Refused> {
        let is_known = !self.turn_id.is_empty();
        let may_repeat = is_known
            || matches!(&self.begin, Begin::Run(request) if !request.request_id.is_empty());
        // The sidecar's own word for a stream that was not read, which is no word about the turn.
        let was_dropped = is_known && refused.reason.as_deref() == Some("TOO_MANY_READERS");
        if !(self.rejoins && may_repeat && (refused.is_lost() || was_dropped)) {
            return Err(refused);
        }
        let lost =
            self.lost.get_or_insert_with(|| Lost { since: Instant::now(), delay: FIRST_DELAY });
        let ends_with_it = matches!(&self.begin, Begin::Run(request)
            if request.disconnect_policy() != pb::DisconnectPolicy::Continue);
        let patience = if is_known && ends_with_it { PATIENCE_FOR_THE_END } else { PATIENCE };
        if lost.since.elapsed() > patience {
            return Err(refused);
        }
        let delay = lost.delay;
        lost.delay = (delay * 2).min(LONGEST_DELAY);
        self.state =
            State::Opening(open(&self.sidecar, &self.begin, &self.turn_id, self.seen, delay));
        Ok(())
    }
}

/// Makes the call, after a while.
fn open<S: Sidecar>(
    sidecar: &S,
    begin: &Begin,
    turn_id: &str,
    seen: u64,
    delay: Duration,
) -> Opening<S> {
    let sidecar = sidecar.clone();
    let attach = |target| pb::AttachTurnRequest { target: Some(target), after_sequence: seen };
    let call = match begin {
        _ if !turn_id.is_empty() => Begin::Attach(attach(Target::TurnId(turn_id.to_owned()))),
        Begin::Run(request) => Begin::Run(request.clone()),
        Begin::Attach(request) => Begin::Attach(request.clone()),
    };
    async move {
        tokio::time::sleep(delay).await;
        match call {
            Begin::Run(request) => sidecar.run_turn(*request).await,
            Begin::Attach(request) => sidecar.attach_turn(request).await,
        }
    }
    .boxed_local()
}
