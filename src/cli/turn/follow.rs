//! The loop that follows a turn.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::{Begin, Connection, Next};
use super::sidecar::Sidecar;
use super::{Outcome, Output, Reply, Told};
use crate::cli::UNREACHABLE;
use crate::cli::ask::{self, Person};
use crate::cli::failure::Failure;
use crate::cli::refusal::Words;
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::codex_request::Kind as Question;
use crate::pb::turn_event::Event;

/// How often somebody who waits is shown that time goes by.
const TICK: Duration = Duration::from_millis(250);
/// How long a replay must be silent before its questions are asked: those that it has settled already
/// need no answer.
const REPLAY: Duration = Duration::from_millis(200);
/// Most events that wait to be shown while a person is asked.
const MOST_HELD: usize = 1000;
/// How often, at most, an answer is sent again whose call was lost: the same one is never counted twice.
const ANSWER_TRIES: u32 = 6;
const ANSWER_DELAY: Duration = Duration::from_millis(500);

pub(super) struct Follower<'a, S: Sidecar, O, P> {
    sidecar: S,
    connection: Connection<S>,
    output: &'a mut O,
    person: &'a P,
    interrupts: mpsc::UnboundedReceiver<()>,
    told: Told,
    outcome: Option<Outcome>,
    interrupting: bool,
    /// Questions that the person is to be asked, in order; the first may be on the screen.
    questions: VecDeque<pb::CodexRequest>,
    /// Questions that were raised but are to be looked at only when the replay is over.
    replayed: VecDeque<pb::CodexRequest>,
    /// Whether the events that come may be old ones.
    is_replay: bool,
    /// What the person is being asked.
    asking: Option<LocalBoxFuture<'a, io::Result<Option<Answer>>>>,
    /// Events that wait until the person has answered.
    held: VecDeque<pb::TurnEvent>,
    /// Questions that nobody can answer.
    unknown: HashSet<String>,
    /// Questions that were declined here for want of an answer.
    declined: HashSet<String>,
    /// Questions that the sidecar declined for want of one.
    declined_there: HashSet<String>,
    /// Calls beside the stream.
    calls: FuturesUnordered<LocalBoxFuture<'static, Called>>,
}

/// What came of a call beside the stream.
enum Called {
    Interrupted(Result<(), Refused>),
    Answered { question: Box<pb::CodexRequest>, by_person: bool, result: Result<(), Refused> },
}

/// What the loop does next.
enum Step {
    CtrlC,
    Next(Result<Next, Refused>),
    Typed(io::Result<Option<Answer>>),
    Called(Called),
    ReplayIsOver,
    Tick,
}

impl<'a, S: Sidecar, O: Output, P: Person> Follower<'a, S, O, P> {
    pub(super) fn new(
        sidecar: S,
        begin: Begin,
        output: &'a mut O,
        person: &'a P,
        interrupts: mpsc::UnboundedReceiver<()>,
    ) -> Follower<'a, S, O, P> {
        let is_replay = matches!(begin, Begin::Attach(_));
        let connection = Connection::new(sidecar.clone(), begin, output.rejoins());
        Follower {
            sidecar,
            connection,
            output,
            person,
            interrupts,
            told: Told::default(),
            outcome: None,
            interrupting: false,
            questions: VecDeque::new(),
            replayed: VecDeque::new(),
            is_replay,
            asking: None,
            held: VecDeque::new(),
            unknown: HashSet::new(),
            declined: HashSet::new(),
            declined_there: HashSet::new(),
            calls: FuturesUnordered::new(),
        }
    }

    /// Follows the turn to its end.
    pub(super) async fn follow(mut self) -> Result<Told, Failure> {
        let followed = self.run().await;
        // A prompt that is still there gives the terminal back.
        self.asking = None;
        followed?;
        self.told.declined = self.declined.union(&self.declined_there).cloned().collect();
        Ok(self.told)
    }

    async fn run(&mut self) -> Result<(), Failure> {
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ticks = self.output.ticks();
        let mut replay_end = Instant::now() + REPLAY;
        loop {
            let waits_for_replay = self.is_replay && !self.replayed.is_empty();
            let step = tokio::select! {
                // Ctrl-C and what it calls first, so that a flood of events can't delay them; events
                // before answers, so that a question which is settled is not asked.
                biased;
                Some(()) = self.interrupts.recv() => Step::CtrlC,
                Some(called) = self.calls.next() => Step::Called(called),
                next = self.connection.next() => Step::Next(next),
                answer = poll_asking(&mut self.asking) => Step::Typed(answer),
                _ = tokio::time::sleep_until(replay_end), if waits_for_replay => Step::ReplayIsOver,
                _ = ticker.tick(), if ticks => Step::Tick,
            };
            match step {
                Step::CtrlC => {
                    if self.interrupting
                        || self.told.turn_id.is_empty()
                        || !self.output.interrupts()
                    {
                        self.withdraw_prompt()?;
                        self.release_held()?;
                        self.output.finish_line()?;
                        self.told.left = true;
                        return Ok(());
                    }
                    self.withdraw_prompt()?;
                    self.questions.clear();
                    self.release_held()?;
                    self.output.interrupting()?;
                    self.interrupt();
                }
                Step::Next(Ok(Next::Event(event))) => {
                    replay_end = Instant::now() + REPLAY;
                    self.event(*event)?;
                }
                Step::Next(Ok(Next::Lost)) => {
                    self.told.was_cut = true;
                    self.is_replay = true;
                    self.release_held()?;
                    self.output.note("the connection is lost; trying to join the turn again")?;
                }
                Step::Next(Ok(Next::Found)) => {
                    replay_end = Instant::now() + REPLAY;
                    self.output.note("joined again")?;
                }
                Step::Next(Ok(Next::End)) => break,
                Step::Next(Err(refused)) => {
                    self.withdraw_prompt()?;
                    self.release_held()?;
                    self.output.finish_line()?;
                    return Err(self.ended(refused));
                }
                Step::Typed(answer) => self.typed(answer)?,
                Step::Called(called) => self.called(called)?,
                Step::ReplayIsOver => {
                    self.is_replay = false;
                    for question in std::mem::take(&mut self.replayed) {
                        self.reply(question)?;
                    }
                }
                Step::Tick => {
                    if self.asking.is_none() {
                        self.output.tick()?;
                    }
                }
            }
        }
        self.withdraw_prompt()?;
        self.release_held()?;
        match self.outcome.take() {
            Some(outcome) => {
                self.told.outcome = outcome;
                Ok(())
            }
            None => {
                self.output.finish_line()?;
                Err(Failure::told(
                    "the stream ended without a terminal event, against the contract",
                ))
            }
        }
    }

    /// What it comes to that there are no more events.
    fn ended(&self, refused: Refused) -> Failure {
        let turn_id = &self.told.turn_id;
        if !self.told.was_cut || turn_id.is_empty() {
            return self.output.refusal(refused);
        }
        if refused.reason.as_deref() == Some("TURN_NOT_FOUND") {
            return Failure::told(format!(
                "the turn {turn_id} is lost: the sidecar that ran it is gone, and the one that is there \
                 now does not know it; what it did so far stays done"
            ));
        }
        if refused.is_lost() {
            let message = format!(
                "the sidecar can't be reached any more: {}; once it can, `codex-sidecar attach {turn_id}` \
                 tells what became of the turn",
                refused.message
            );
            return Failure::Told { message, code: UNREACHABLE };
        }
        self.output.refusal(refused)
    }

    fn event(&mut self, event: pb::TurnEvent) -> Result<(), Failure> {
        self.told.turn_id.clone_from(&event.turn_id);
        match &event.event {
            Some(Event::RequestResolved(resolved)) => self.resolved(resolved)?,
            Some(Event::ThreadStarted(thread)) => {
                self.told.thread_id.clone_from(&thread.thread_id);
            }
            Some(Event::TurnInterrupted(stopped)) => self.told.interrupted_by = stopped.reason(),
            _ => {}
        }
        if let Some(kind) = &event.event
            && let Some(outcome) = Outcome::of(kind)
        {
            self.outcome = Some(outcome);
        }
        let raised = match &event.event {
            Some(Event::RequestRaised(pb::RequestRaised { request })) => request.clone(),
            // From a newer sidecar, what is not known: a client skips it.
            _ => None,
        };
        if self.asking.is_some() && self.held.len() < MOST_HELD {
            self.held.push_back(event);
        } else {
            self.release_held()?;
            self.output.event(&event)?;
        }
        match raised {
            Some(question) if self.is_replay => self.replayed.push_back(question),
            Some(question) => self.reply(question)?,
            None => {}
        }
        Ok(())
    }

    /// A question is settled: it need not be asked any more.
    fn resolved(&mut self, resolved: &pb::RequestResolved) -> Result<(), Failure> {
        use pb::RequestResolution::{Declined, TimedOut};
        let id = &resolved.request_id;
        let how = resolved.resolution();
        if matches!(how, Declined | TimedOut) && !self.unknown.contains(id) {
            self.declined_there.insert(id.clone());
        }
        self.replayed.retain(|question| question.request_id != *id);
        let is_on_screen = self.asking.is_some()
            && self.questions.front().is_some_and(|question| question.request_id == *id);
        if is_on_screen {
            self.withdraw_prompt()?;
            if how == pb::RequestResolution::Answered {
                self.output.note("somebody else has answered it")?;
            }
        }
        self.questions.retain(|question| question.request_id != *id);
        if is_on_screen {
            self.release_held()?;
            self.ask_next()?;
        }
        Ok(())
    }

    fn reply(&mut self, question: pb::CodexRequest) -> Result<(), Failure> {
        if matches!(question.kind, Some(Question::Unknown(_)) | None) {
            self.unknown.insert(question.request_id);
            return Ok(());
        }
        if self.interrupting {
            return Ok(());
        }
        match self.output.reply(&question)? {
            Reply::Leave => {}
            Reply::Send(answer) => self.answer(question, answer, false),
            Reply::Decline(answer) => {
                self.declined.insert(question.request_id.clone());
                self.answer(question, answer, false);
            }
            Reply::Ask => {
                self.questions.push_back(question);
                self.ask_next()?;
            }
            Reply::Stop => {
                self.told.stopped_by.get_or_insert(question.request_id);
                self.interrupt();
            }
        }
        Ok(())
    }

    /// Puts the next question on the screen, unless there is one.
    fn ask_next(&mut self) -> Result<(), Failure> {
        if self.asking.is_some() {
            return Ok(());
        }
        let Some(question) = self.questions.front().cloned() else { return Ok(()) };
        self.output.finish_line()?;
        let person = self.person;
        self.asking = Some(async move { ask::ask(&question, person).await }.boxed_local());
        Ok(())
    }

    fn typed(&mut self, answer: io::Result<Option<Answer>>) -> Result<(), Failure> {
        self.asking = None;
        let Some(question) = self.questions.pop_front() else { return Ok(()) };
        match answer {
            Ok(Some(answer)) => self.answer(question, answer, true),
            // Whether nobody is there any more or the terminal is gone comes to the same.
            Ok(None) | Err(_) => {
                // Behind the prompt.
                let _ = self.person.show("\n");
                self.output.note("nobody answers here any more: declined")?;
                if let Some(answer) = ask::no(&question) {
                    self.declined.insert(question.request_id.clone());
                    self.answer(question, answer, false);
                }
            }
        }
        self.release_held()?;
        self.ask_next()
    }

    /// Takes the prompt from the screen.
    fn withdraw_prompt(&mut self) -> Result<(), Failure> {
        if self.asking.take().is_some() {
            // Behind the prompt.
            let _ = self.person.show("\n");
        }
        Ok(())
    }

    fn release_held(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.held.pop_front() {
            self.output.event(&event)?;
        }
        Ok(())
    }

    fn interrupt(&mut self) {
        self.interrupting = true;
        let (sidecar, turn_id) = (self.sidecar.clone(), self.told.turn_id.clone());
        let call = async move { Called::Interrupted(sidecar.interrupt_turn(turn_id).await) };
        self.calls.push(call.boxed_local());
    }

    fn answer(&mut self, question: pb::CodexRequest, answer: Answer, by_person: bool) {
        let sidecar = self.sidecar.clone();
        let request = pb::AnswerRequestRequest {
            turn_id: self.told.turn_id.clone(),
            request_id: question.request_id.clone(),
            answer: Some(answer),
        };
        let call = async move {
            let mut tries = 1;
            let result = loop {
                match sidecar.answer_request(request.clone()).await {
                    Err(refused) if refused.is_lost() && tries < ANSWER_TRIES => {
                        tokio::time::sleep(ANSWER_DELAY * tries).await;
                        tries += 1;
                    }
                    result => break result,
                }
            };
            Called::Answered { question: Box::new(question), by_person, result }
        };
        self.calls.push(call.boxed_local());
    }

    fn called(&mut self, called: Called) -> Result<(), Failure> {
        match called {
            Called::Interrupted(Ok(())) | Called::Answered { result: Ok(()), .. } => Ok(()),
            Called::Interrupted(Err(refused)) => {
                let why = self.output.refusal(refused).into_message();
                self.output.note(&format!("warning: can't interrupt the turn: {why}"))
            }
            Called::Answered { question, by_person, result: Err(refused) } => {
                self.answer_refused(*question, by_person, &refused)
            }
        }
    }

    fn answer_refused(
        &mut self,
        question: pb::CodexRequest,
        by_person: bool,
        refused: &Refused,
    ) -> Result<(), Failure> {
        let settled = ["REQUEST_ALREADY_RESOLVED", "REQUEST_NOT_FOUND", "TURN_NOT_FOUND"];
        let is_settled = refused.reason.as_deref().is_some_and(|reason| settled.contains(&reason));
        if is_settled {
            // How is told by its event. Our no was not what settled it.
            self.declined.remove(&question.request_id);
            if by_person {
                self.output.note("the answer came too late: the question is settled")?;
            }
            return Ok(());
        }
        self.output
            .note(&format!("the answer is refused: {}", Words::of_answer().faults(refused)))?;
        if refused.reason.as_deref() != Some("INVALID_INPUT") || self.outcome.is_some() {
            return Ok(());
        }
        // The question is still open.
        if by_person {
            self.questions.push_back(question);
            self.ask_next()?;
        } else if !self.declined.contains(&question.request_id)
            && let Some(no) = ask::no(&question)
        {
            self.declined.insert(question.request_id.clone());
            self.answer(question, no, false);
        }
        Ok(())
    }
}

/// What the person answered; never anything where nobody is asked.
async fn poll_asking(
    asking: &mut Option<LocalBoxFuture<'_, io::Result<Option<Answer>>>>,
) -> io::Result<Option<Answer>> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}
