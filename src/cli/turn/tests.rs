//! The driver over a sidecar and a person that the test plays, on a paused clock.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use super::follow::Follower;
use super::sidecar::{Events, Sidecar};
use super::*;
use crate::pb::ApprovalDecision as Decision;
use crate::pb::codex_request::Kind as Question;

type Sent = Result<pb::TurnEvent, Refused>;
type Stream = mpsc::UnboundedReceiver<Sent>;

/// A call that reached the sidecar.
#[derive(Debug, Clone, PartialEq)]
enum Call {
    Run(String),
    Attach(String, u64),
    Interrupt(String),
    Answer(String, Answer),
}

/// A sidecar: its streams and its answers to calls are laid out before, the calls are kept.
#[derive(Clone, Default)]
struct Played(Rc<Plan>);

#[derive(Default)]
struct Plan {
    streams: RefCell<VecDeque<Result<Stream, Refused>>>,
    answers: RefCell<VecDeque<Result<(), Refused>>>,
    calls: RefCell<Vec<Call>>,
}

impl Played {
    fn stream(&self) -> mpsc::UnboundedSender<Sent> {
        let (sender, events) = mpsc::unbounded_channel();
        self.0.streams.borrow_mut().push_back(Ok(events));
        sender
    }

    fn refuses(&self, refused: Refused) {
        self.0.streams.borrow_mut().push_back(Err(refused));
    }

    fn refuses_an_answer(&self, reason: &str) {
        let refused = refused("INVALID_ARGUMENT", reason);
        self.0.answers.borrow_mut().push_back(Err(refused));
    }

    fn calls(&self) -> Vec<Call> {
        self.0.calls.borrow().clone()
    }

    fn called(&self, call: Call) {
        self.0.calls.borrow_mut().push(call);
    }

    fn next_stream(&self) -> Result<Sequence, Refused> {
        let lost = || Err(lost());
        let next = self.0.streams.borrow_mut().pop_front();
        next.unwrap_or_else(lost).map(Sequence)
    }
}

/// The events that a test sends.
struct Sequence(Stream);

impl Events for Sequence {
    async fn next(&mut self) -> Result<Option<pb::TurnEvent>, Refused> {
        self.0.recv().await.transpose()
    }
}

impl Sidecar for Played {
    type Events = Sequence;

    async fn run_turn(&self, request: pb::RunTurnRequest) -> Result<Sequence, Refused> {
        self.called(Call::Run(request.request_id));
        self.next_stream()
    }

    async fn attach_turn(&self, request: pb::AttachTurnRequest) -> Result<Sequence, Refused> {
        let pb::AttachTurnRequest { target, after_sequence } = request;
        let target = match target {
            Some(pb::attach_turn_request::Target::TurnId(turn_id)) => turn_id,
            _ => "a context".to_owned(),
        };
        self.called(Call::Attach(target, after_sequence));
        self.next_stream()
    }

    async fn interrupt_turn(&self, turn_id: String) -> Result<(), Refused> {
        self.called(Call::Interrupt(turn_id));
        Ok(())
    }

    async fn answer_request(&self, request: pb::AnswerRequestRequest) -> Result<(), Refused> {
        self.called(Call::Answer(request.request_id, request.answer.unwrap()));
        self.0.answers.borrow_mut().pop_front().unwrap_or(Ok(()))
    }
}

fn refused(code: &'static str, reason: &str) -> Refused {
    Refused {
        code,
        reason: Some(reason.to_owned()),
        message: "no".to_owned(),
        fields: Vec::new(),
        retry_after: None,
    }
}

/// What a client says of a connection that broke.
fn lost() -> Refused {
    Refused { reason: None, ..refused("UNAVAILABLE", "") }
}

/// Keeps what it is told, and replies as it is made to.
struct Kept {
    events: Vec<&'static str>,
    notes: Vec<String>,
    reply: fn(&pb::CodexRequest) -> Reply,
    interrupts: bool,
    ticks: usize,
}

impl Kept {
    fn new(reply: fn(&pb::CodexRequest) -> Reply) -> Kept {
        Kept { events: Vec::new(), notes: Vec::new(), reply, interrupts: true, ticks: 0 }
    }
}

impl Output for Kept {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        self.events.push(match event.event.as_ref().unwrap() {
            Event::ThreadStarted(_) => "thread",
            Event::RequestRaised(_) => "raised",
            Event::RequestResolved(_) => "resolved",
            Event::AgentMessageDelta(_) => "delta",
            Event::TurnCompleted(_) => "completed",
            Event::TurnInterrupted(_) => "interrupted",
            _ => "other",
        });
        Ok(())
    }

    fn note(&mut self, text: &str) -> Result<(), Failure> {
        self.notes.push(text.to_owned());
        Ok(())
    }

    fn reply(&mut self, question: &pb::CodexRequest) -> Result<Reply, Failure> {
        Ok((self.reply)(question))
    }

    fn rejoins(&self) -> bool {
        true
    }

    fn interrupts(&self) -> bool {
        self.interrupts
    }

    fn ticks(&self) -> bool {
        true
    }

    fn tick(&mut self) -> Result<(), Failure> {
        self.ticks += 1;
        Ok(())
    }
}

/// A person whose lines the test types.
struct Typist {
    lines: Mutex<mpsc::UnboundedReceiver<String>>,
    screen: RefCell<String>,
}

impl Person for Typist {
    fn begin(&self) {}

    fn show(&self, text: &str) -> io::Result<()> {
        self.screen.borrow_mut().push_str(text);
        Ok(())
    }

    async fn line(&self, _: &str, _: bool) -> io::Result<Option<String>> {
        Ok(self.lines.lock().await.recv().await)
    }
}

/// All of a test's side.
struct Table {
    sidecar: Played,
    typing: mpsc::UnboundedSender<String>,
    person: Typist,
    ctrl_c: mpsc::UnboundedSender<()>,
    interrupts: Option<mpsc::UnboundedReceiver<()>>,
}

impl Table {
    fn new() -> Table {
        let (typing, lines) = mpsc::unbounded_channel();
        let (ctrl_c, interrupts) = mpsc::unbounded_channel();
        let person = Typist { lines: Mutex::new(lines), screen: RefCell::default() };
        let interrupts = Some(interrupts);
        Table { sidecar: Played::default(), typing, person, ctrl_c, interrupts }
    }

    async fn follow(&mut self, begin: Begin, output: &mut Kept) -> Result<Told, Failure> {
        let interrupts = self.interrupts.take().expect("followed once");
        let sidecar = self.sidecar.clone();
        Follower::new(sidecar, begin, output, &self.person, interrupts).follow().await
    }

    async fn run(&mut self, output: &mut Kept) -> Result<Told, Failure> {
        self.follow(run("r"), output).await
    }

    fn answered(&self) -> Vec<(String, Answer)> {
        let calls = self.sidecar.calls().into_iter();
        calls
            .filter_map(|call| match call {
                Call::Answer(id, answer) => Some((id, answer)),
                _ => None,
            })
            .collect()
    }
}

fn run(request_id: &str) -> Begin {
    let request_id = request_id.to_owned();
    Begin::Run(Box::new(pb::RunTurnRequest { request_id, ..Default::default() }))
}

fn event(sequence: u64, event: Event) -> Sent {
    Ok(pb::TurnEvent {
        sequence,
        turn_id: "t".to_owned(),
        event: Some(event),
        ..Default::default()
    })
}

fn thread(sequence: u64) -> Sent {
    let thread_id = "th".to_owned();
    event(sequence, Event::ThreadStarted(pb::ThreadStarted { thread_id, origin: 1 }))
}

fn delta(sequence: u64) -> Sent {
    event(sequence, Event::AgentMessageDelta(pb::AgentMessageDelta::default()))
}

fn raised(sequence: u64, id: &str, kind: Question) -> Sent {
    let request =
        pb::CodexRequest { request_id: id.to_owned(), kind: Some(kind), ..Default::default() };
    event(sequence, Event::RequestRaised(pb::RequestRaised { request: Some(request) }))
}

fn command(sequence: u64, id: &str) -> Sent {
    let asked = pb::CommandApproval { command: "ls".to_owned(), ..Default::default() };
    raised(sequence, id, Question::CommandApproval(asked))
}

fn resolved(sequence: u64, id: &str, how: pb::RequestResolution) -> Sent {
    event(
        sequence,
        Event::RequestResolved(pb::RequestResolved {
            request_id: id.to_owned(),
            resolution: how.into(),
            resolved_by: String::new(),
        }),
    )
}

fn completed(sequence: u64) -> Sent {
    let final_response = "done".to_owned();
    event(
        sequence,
        Event::TurnCompleted(pb::TurnCompleted { final_response, ..Default::default() }),
    )
}

fn interrupted(sequence: u64) -> Sent {
    let reason = pb::InterruptReason::InterruptRequested.into();
    event(sequence, Event::TurnInterrupted(pb::TurnInterrupted { reason, ..Default::default() }))
}

fn approval(decision: Decision) -> Answer {
    Answer::Approval(pb::ApprovalAnswer { decision: decision.into(), ..Default::default() })
}

fn asks(_: &pb::CodexRequest) -> Reply {
    Reply::Ask
}

fn leaves(_: &pb::CodexRequest) -> Reply {
    Reply::Leave
}

/// Lets everybody do what they can do now.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_shown_to_its_end() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    for sent in [thread(1), delta(2), completed(3)] {
        stream.send(sent).unwrap();
    }
    drop(stream);
    let mut output = Kept::new(leaves);
    let told = table.run(&mut output).await.unwrap();
    assert!(matches!(told.outcome, Outcome::Completed(text) if text == "done"));
    assert_eq!((told.turn_id.as_str(), told.thread_id.as_str()), ("t", "th"));
    assert_eq!((told.declined.len(), told.was_cut, told.left), (0, false, false));
    assert_eq!(output.events, ["thread", "delta", "completed"]);
    assert_eq!(table.sidecar.calls(), [Call::Run("r".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_person_answers_one_question_after_the_other_and_sees_the_rest_afterwards() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let typing = table.typing.clone();
    let mut output = Kept::new(asks);
    let following = table.run(&mut output);
    let playing = async {
        for sent in [thread(1), command(2, "a"), command(3, "b"), delta(4)] {
            stream.send(sent).unwrap();
        }
        settle().await;
        typing.send("y".to_owned()).unwrap();
        settle().await;
        stream.send(resolved(5, "a", pb::RequestResolution::Answered)).unwrap();
        typing.send("n".to_owned()).unwrap();
        settle().await;
        stream.send(completed(6)).unwrap();
        drop(stream);
    };
    let (told, ()) = tokio::join!(following, playing);
    assert_eq!(told.unwrap().declined.len(), 0);
    let expected = [
        ("a".to_owned(), approval(Decision::Accept)),
        ("b".to_owned(), approval(Decision::Decline)),
    ];
    assert_eq!(table.answered(), expected);
    assert_eq!(output.events, ["thread", "raised", "raised", "delta", "resolved", "completed"]);
    assert_eq!(table.person.screen.borrow().matches("may this command run").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn time_is_shown_while_nobody_is_asked() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let typing = table.typing.clone();
    let mut output = Kept::new(asks);
    let playing = async {
        stream.send(thread(1)).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        stream.send(command(2, "a")).unwrap();
        tokio::time::sleep(Duration::from_secs(100)).await;
        typing.send("y".to_owned()).unwrap();
        settle().await;
        stream.send(completed(3)).unwrap();
        drop(stream);
    };
    tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert!((8..12).contains(&output.ticks), "{}", output.ticks);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_settled_elsewhere_leaves_the_screen() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let typing = table.typing.clone();
    let mut output = Kept::new(asks);
    let playing = async {
        for sent in [thread(1), command(2, "a"), command(3, "b"), command(4, "c")] {
            stream.send(sent).unwrap();
        }
        settle().await;
        // The one on the screen, and one that has not been on it.
        stream.send(resolved(5, "a", pb::RequestResolution::Answered)).unwrap();
        stream.send(resolved(6, "c", pb::RequestResolution::TimedOut)).unwrap();
        settle().await;
        typing.send("y".to_owned()).unwrap();
        settle().await;
        stream.send(completed(7)).unwrap();
        drop(stream);
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert_eq!(table.answered(), [("b".to_owned(), approval(Decision::Accept))]);
    assert_eq!(told.declined.len(), 1, "the one that nobody answered in time");
    assert_eq!(table.person.screen.borrow().matches("may this command run").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_person_who_is_gone_declines_and_that_is_counted_once() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    for sent in [thread(1), command(2, "a")] {
        stream.send(sent).unwrap();
    }
    // Nobody types any more.
    let (nobody, _) = mpsc::unbounded_channel();
    drop(std::mem::replace(&mut table.typing, nobody));
    let mut output = Kept::new(asks);
    let playing = async {
        settle().await;
        stream.send(resolved(3, "a", pb::RequestResolution::Answered)).unwrap();
        stream.send(completed(4)).unwrap();
        drop(stream);
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert_eq!(told.declined.len(), 1);
    assert_eq!(table.answered(), [("a".to_owned(), approval(Decision::Decline))]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_answer_is_asked_for_again_and_a_late_one_is_told() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let typing = table.typing.clone();
    table.sidecar.refuses_an_answer("INVALID_INPUT");
    table.sidecar.refuses_an_answer("REQUEST_ALREADY_RESOLVED");
    let mut output = Kept::new(asks);
    let playing = async {
        for sent in [thread(1), command(2, "a")] {
            stream.send(sent).unwrap();
        }
        for line in ["y", "n"] {
            settle().await;
            typing.send(line.to_owned()).unwrap();
        }
        settle().await;
        stream.send(completed(3)).unwrap();
        drop(stream);
    };
    tokio::join!(table.run(&mut output), playing).0.unwrap();
    let expected = [
        ("a".to_owned(), approval(Decision::Accept)),
        ("a".to_owned(), approval(Decision::Decline)),
    ];
    assert_eq!(table.answered(), expected);
    assert!(output.notes[0].starts_with("the answer is refused"), "{:?}", output.notes);
    assert!(output.notes[1].contains("too late"), "{:?}", output.notes);
}

#[tokio::test(start_paused = true)]
async fn an_automatic_answer_that_is_refused_becomes_a_no() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    table.sidecar.refuses_an_answer("INVALID_INPUT");
    table.sidecar.refuses_an_answer("INVALID_INPUT");
    let mut output = Kept::new(|question| Reply::Send(crate::cli::ask::yes(question).unwrap()));
    let playing = async {
        for sent in [thread(1), command(2, "a")] {
            stream.send(sent).unwrap();
        }
        settle().await;
        stream.send(completed(3)).unwrap();
        drop(stream);
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    let expected = [
        ("a".to_owned(), approval(Decision::Accept)),
        ("a".to_owned(), approval(Decision::Decline)),
    ];
    assert_eq!(table.answered(), expected);
    assert_eq!((told.declined.len(), output.notes.len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_was_declined_for_want_of_an_answer_is_counted_and_no_more() {
    use pb::RequestResolution::{Answered, Declined, Withdrawn};
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    // The sidecar has declined "a" by itself; somebody else has answered "d".
    table.sidecar.refuses_an_answer("REQUEST_ALREADY_RESOLVED");
    table.sidecar.refuses_an_answer("REQUEST_ALREADY_RESOLVED");
    let mut output = Kept::new(|question| match question.request_id.as_str() {
        "a" | "d" => Reply::Decline(approval(Decision::Decline)),
        _ => Reply::Leave,
    });
    let playing = async {
        stream.send(thread(1)).unwrap();
        stream.send(command(2, "a")).unwrap();
        stream.send(resolved(3, "a", Declined)).unwrap();
        settle().await;
        stream.send(command(4, "d")).unwrap();
        stream.send(resolved(5, "d", Answered)).unwrap();
        stream.send(raised(6, "u", Question::Unknown(Default::default()))).unwrap();
        stream.send(resolved(7, "u", Declined)).unwrap();
        stream.send(command(8, "w")).unwrap();
        stream.send(resolved(9, "w", Withdrawn)).unwrap();
        settle().await;
        stream.send(completed(10)).unwrap();
        drop(stream);
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert_eq!(told.declined.len(), 1);
    assert_eq!(output.notes, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_question_can_stop_the_turn() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let mut output = Kept::new(|_| Reply::Stop);
    let playing = async {
        for sent in [thread(1), command(2, "a"), command(3, "b")] {
            stream.send(sent).unwrap();
        }
        settle().await;
        stream.send(interrupted(4)).unwrap();
        drop(stream);
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert!(told.stopped_by.is_some());
    let expected = [Call::Run("r".to_owned()), Call::Interrupt("t".to_owned())];
    assert_eq!(table.sidecar.calls(), expected);
}

#[tokio::test(start_paused = true)]
async fn ctrl_c_interrupts_and_a_second_one_leaves() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let ctrl_c = table.ctrl_c.clone();
    let mut output = Kept::new(asks);
    let playing = async {
        for sent in [thread(1), command(2, "a")] {
            stream.send(sent).unwrap();
        }
        settle().await;
        ctrl_c.send(()).unwrap();
        settle().await;
        ctrl_c.send(()).unwrap();
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert!(told.left && matches!(told.outcome, Outcome::Interrupted));
    // Also of what the person was being asked: nothing was answered.
    let expected = [Call::Run("r".to_owned()), Call::Interrupt("t".to_owned())];
    assert_eq!(table.sidecar.calls(), expected);
}

#[tokio::test(start_paused = true)]
async fn ctrl_c_before_there_is_a_turn_or_of_one_who_looks_on_only_leaves() {
    let mut table = Table::new();
    let _stream = table.sidecar.stream();
    table.ctrl_c.send(()).unwrap();
    let told = table.run(&mut Kept::new(asks)).await.unwrap();
    assert!(told.left);

    let mut table = Table::new();
    let stream = table.sidecar.stream();
    stream.send(thread(1)).unwrap();
    let ctrl_c = table.ctrl_c.clone();
    let mut output = Kept { interrupts: false, ..Kept::new(asks) };
    let playing = async {
        settle().await;
        ctrl_c.send(()).unwrap();
    };
    let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
    assert!(told.left);
    assert_eq!(table.sidecar.calls(), [Call::Run("r".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_connection_breaks_is_joined_where_it_was() {
    let mut table = Table::new();
    let first = table.sidecar.stream();
    first.send(thread(1)).unwrap();
    first.send(delta(2)).unwrap();
    first.send(Err(lost())).unwrap();
    // Twice in vain.
    table.sidecar.refuses(lost());
    table.sidecar.refuses(lost());
    let second = table.sidecar.stream();
    second.send(delta(3)).unwrap();
    second.send(completed(4)).unwrap();
    drop(second);
    let mut output = Kept::new(leaves);
    let told = table.run(&mut output).await.unwrap();
    assert!(told.was_cut && matches!(told.outcome, Outcome::Completed(_)));
    assert_eq!(output.events, ["thread", "delta", "delta", "completed"]);
    let attach = Call::Attach("t".to_owned(), 2);
    let expected = [Call::Run("r".to_owned()), attach.clone(), attach.clone(), attach];
    assert_eq!(table.sidecar.calls(), expected);
    assert_eq!(output.notes.len(), 2, "lost and found, each once: {:?}", output.notes);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_breaks_before_its_first_event_is_made_again_where_that_is_safe() {
    let mut table = Table::new();
    table.sidecar.refuses(lost());
    let stream = table.sidecar.stream();
    stream.send(completed(1)).unwrap();
    drop(stream);
    table.run(&mut Kept::new(leaves)).await.unwrap();
    let call = Call::Run("r".to_owned());
    assert_eq!(table.sidecar.calls(), [call.clone(), call]);

    let mut table = Table::new();
    table.sidecar.refuses(lost());
    let refused = table.follow(run(""), &mut Kept::new(leaves)).await;
    assert!(refused.is_err());
    assert_eq!(table.sidecar.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_stays_lost_is_given_up_as_soon_as_it_can_be_no_more() {
    use pb::DisconnectPolicy::{Continue, Interrupt, Unspecified};
    for (policy, seconds) in [(Continue, 60..70), (Interrupt, 5..10), (Unspecified, 5..10)] {
        let mut table = Table::new();
        let first = table.sidecar.stream();
        first.send(thread(1)).unwrap();
        first.send(Err(lost())).unwrap();
        let mut request = pb::RunTurnRequest { request_id: "r".to_owned(), ..Default::default() };
        request.set_disconnect_policy(policy);
        let began = tokio::time::Instant::now();
        let begin = Begin::Run(Box::new(request));
        let failure = table.follow(begin, &mut Kept::new(leaves)).await.unwrap_err();
        assert!(seconds.contains(&began.elapsed().as_secs()), "{policy:?} {:?}", began.elapsed());
        let Failure::Told { message, code: 69 } = failure else { panic!("{failure:?}") };
        assert!(message.contains("can't be reached") && message.contains("attach t"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_the_sidecar_has_lost_is_no_refusal() {
    let mut table = Table::new();
    let first = table.sidecar.stream();
    first.send(thread(1)).unwrap();
    first.send(Err(lost())).unwrap();
    table.sidecar.refuses(refused("NOT_FOUND", "TURN_NOT_FOUND"));
    let failure = table.run(&mut Kept::new(leaves)).await.unwrap_err();
    let Failure::Told { message, code: 1 } = failure else { panic!("{failure:?}") };
    assert!(message.contains("the turn t is lost"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_person_is_told_that_somebody_else_has_answered() {
    for (how, tells) in
        [(pb::RequestResolution::Answered, true), (pb::RequestResolution::TimedOut, false)]
    {
        let mut table = Table::new();
        let stream = table.sidecar.stream();
        let mut output = Kept::new(asks);
        let playing = async {
            stream.send(thread(1)).unwrap();
            stream.send(command(2, "a")).unwrap();
            settle().await;
            stream.send(resolved(3, "a", how)).unwrap();
            stream.send(completed(4)).unwrap();
            drop(stream);
        };
        let told = tokio::join!(table.run(&mut output), playing).0.unwrap();
        // Which one it was, the end tells by its id.
        assert_eq!(told.declined.contains("a"), !tells);
        let told = output.notes.iter().any(|note| note.contains("somebody else"));
        assert_eq!(told, tells, "{how:?}: {:?}", output.notes);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_sidecar_itself_refuses_is_not_tried_again() {
    let mut table = Table::new();
    table.sidecar.refuses(refused("UNAVAILABLE", "DRAINING"));
    assert!(table.run(&mut Kept::new(leaves)).await.is_err());
    assert_eq!(table.sidecar.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_a_replay_only_what_is_still_open_is_asked() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    let typing = table.typing.clone();
    let mut output = Kept::new(asks);
    let target = Some(pb::attach_turn_request::Target::TurnId("t".to_owned()));
    let begin = Begin::Attach(pb::AttachTurnRequest { target, after_sequence: 0 });
    let playing = async {
        stream.send(thread(1)).unwrap();
        stream.send(command(2, "a")).unwrap();
        // It is a moment between the two.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send(resolved(3, "a", pb::RequestResolution::Answered)).unwrap();
        stream.send(command(4, "b")).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        typing.send("y".to_owned()).unwrap();
        settle().await;
        stream.send(completed(5)).unwrap();
        drop(stream);
    };
    tokio::join!(table.follow(begin, &mut output), playing).0.unwrap();
    assert_eq!(table.answered(), [("b".to_owned(), approval(Decision::Accept))]);
    assert_eq!(table.person.screen.borrow().matches("may this command run").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_an_end_is_a_failure() {
    let mut table = Table::new();
    let stream = table.sidecar.stream();
    stream.send(thread(1)).unwrap();
    drop(stream);
    assert!(table.run(&mut Kept::new(leaves)).await.is_err());
}
