//! What Codex asks in a turn.

use super::*;
use crate::app_server::message::CallId;
use crate::app_server::protected::ProtectedPaths;
use crate::model::item::{ChangedFile, FileChange};
use crate::model::question::Resolution;
use crate::model::question::{ApprovalAnswer, FileChangeApproval, ToolCallAnswer};
use crate::pb::ToolContent;

const WITHIN: Duration = Duration::from_secs(60);
/// How long a line of Codex may be.
const MOST_BYTES: usize = 10_000;

fn until() -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }
}

fn ask() -> Policy {
    Policy::Ask {
        until: Some(until()),
        within: WITHIN,
        most_bytes: MOST_BYTES,
        protected: ProtectedPaths::default(),
    }
}

fn raised(id: &str, is_asked: bool) -> Act {
    let mut question = tool_call(0).question;
    question.request_id = id.to_owned();
    question.expire_time = is_asked.then(until);
    Act::Tell(Event::request_raised(question))
}

fn resolved(id: &str, resolution: Resolution) -> Act {
    let by = if resolution == Resolution::Answered { "somebody" } else { "sidecar" };
    resolved_by(id, resolution, by)
}

fn resolved_by(id: &str, resolution: Resolution, by: &str) -> Act {
    Act::Tell(Event::request_resolved(id.to_owned(), resolution, by))
}

fn given(answer: Answer) -> Given {
    Given::new(answer, CallerName("somebody".into()))
}

fn says(text: &str) -> ToolCallAnswer {
    let content = crate::pb::tool_content::Content::Text(text.to_owned());
    ToolCallAnswer { content: vec![ToolContent { content: Some(content) }], success: true }
}

fn answer(to: u64, id: &str, text: &str) -> Input {
    let (to, request_id) = (ReplyTo(to), id.to_owned());
    Input::Answer { to, request_id, given: Box::new(given(Answer::ToolCall(says(text)))) }
}

fn reply(to: u64, outcome: Result<(), Unanswerable>) -> Act {
    Act::ReplyAnswered { to: ReplyTo(to), outcome }
}

/// A turn that waits for an answer.
fn asking() -> Sim {
    let mut sim = Sim::live(|request| request.turn_options.idle_timeout = Some(SECOND));
    assert_eq!(sim.on(Input::Asked(tool_call(7), ask())), [raised("1", true)]);
    sim
}

/// A question about a patch.
fn patch_question(thread_id: &str, turn_id: &str, call: u64) -> Asked {
    let kind = QuestionKind::FileChangeApproval(FileChangeApproval::default());
    let scope = Scope { thread_id: Some(thread_id.to_owned()), turn_id: Some(turn_id.to_owned()) };
    let question = Question::new(Some("patch".to_owned()), kind);
    Asked { scope, call: call_id(call), question, bytes: 0 }
}

fn patch(path: &str) -> Item {
    let changes = vec![ChangedFile { path: path.to_owned(), ..Default::default() }];
    Item::new("patch", ItemKind::FileChange(FileChange { changes, ..Default::default() }))
}

/// What is asked about, and the paths that a patch would change.
fn asked_about(acts: &[Act]) -> (&str, Vec<&str>) {
    let Act::Tell(Event::RequestRaised(raised)) = &acts[0] else { panic!("{acts:#?}") };
    let question = raised.request.as_ref().unwrap();
    let Some(QuestionKind::FileChangeApproval(asked)) = &question.kind else { panic!() };
    (&question.item_id, asked.changes.iter().map(|change| change.path.as_str()).collect())
}

#[test]
fn the_question_of_a_patch_brings_the_patch_as_it_was_told_last() {
    let mut sim = Sim::live(|_| {});
    let ask =
        |sim: &mut Sim, call| sim.on(Input::Asked(patch_question(THREAD, FIRST, call), ask()));
    assert_eq!(asked_about(&ask(&mut sim, 1)), ("patch", vec![]));
    sim.tell(News::Event(Event::item_started(patch("a"))));
    assert_eq!(asked_about(&ask(&mut sim, 2)), ("patch", vec!["a"]));
    sim.tell(News::Event(Event::item_updated(patch("b"))));
    assert_eq!(asked_about(&ask(&mut sim, 3)), ("patch", vec!["b"]));
    sim.tell(News::Event(Event::item_completed(patch("b"))));
    assert_eq!(asked_about(&ask(&mut sim, 4)), ("patch", vec![]));
}

#[test]
fn what_a_sub_agent_asks_is_asked_of_its_item_and_what_anothers_turn_asks_is_declined() {
    let mut sim = Sim::live(|_| {});
    sim.begins("child", "child-turn");
    // The item of the same name on the turn's own thread is another one.
    sim.tell(News::Event(Event::item_started(patch("own"))));
    let told = News::Event(Event::item_started(patch("childs")));
    sim.tell_of("child", Some("child-turn"), told);
    let acts = sim.on(Input::Asked(patch_question("child", "child-turn", 1), ask()));
    assert_eq!(asked_about(&acts), ("child-turn", vec!["childs"]));
    assert_eq!(acts.len(), 1, "it waits");
    let acts = sim.on(Input::Asked(patch_question(THREAD, "nobodys", 2), ask()));
    assert_eq!(acts[1..], [Act::Decline(call_id(2)), resolved("2", Resolution::Declined)]);
    // Both end with the turn, wherever they are from.
    let acts = sim.on(Input::Stop(InterruptReason::InterruptRequested));
    assert_eq!(acts[2..], [Act::Decline(call_id(1)), resolved("1", Resolution::Withdrawn)]);
}

#[test]
fn so_many_questions_wait_at_once_and_what_is_more_is_declined() {
    let mut sim = Sim::live(|_| {});
    let asks = |sim: &mut Sim, call, bytes| {
        sim.on(Input::Asked(Asked { bytes, ..tool_call(call) }, ask())).len() == 1
    };
    let (most, most_bytes) = (1024, 16 << 20);
    for call in 1..=most {
        assert!(asks(&mut sim, call, 1), "{call}");
    }
    assert!(!asks(&mut sim, most + 1, 1));
    // There is room again for each that is settled.
    sim.on(answer(1, "7", "yes"));
    assert!(asks(&mut sim, most + 2, 1));
    assert!(!asks(&mut sim, most + 3, 1));
    assert_eq!(sim.later(WITHIN).len(), 2 * most as usize);
    assert!(asks(&mut sim, most + 4, most_bytes));
    assert!(!asks(&mut sim, most + 5, 1));
    sim.on(answer(2, &(most + 4).to_string(), "yes"));
    assert!(asks(&mut sim, most + 6, most_bytes - 1));
    assert!(asks(&mut sim, most + 7, 1));
}

#[test]
fn what_is_not_asked_is_declined_at_once() {
    let mut sim = Sim::live(|_| {});
    for id in ["1", "2"] {
        let acts = sim.on(Input::Asked(tool_call(7), Policy::Decline));
        let declined = resolved(id, Resolution::Declined);
        assert_eq!(acts, [raised(id, false), Act::Decline(call_id(7)), declined]);
    }
    assert_eq!(sim.on(answer(1, "2", "x")), [reply(1, Err(Unanswerable::Resolved))]);
    // Something may have been done.
    let end = TurnEnd::Failed(crate::model::failure::TurnError::default());
    assert!(failure(&sim.tell(News::TurnEnded(end))).side_effects_possible);
}

#[test]
fn the_first_answer_counts_and_the_same_one_may_come_again() {
    let mut sim = asking();
    let acts = sim.on(answer(1, "1", "yes"));
    let handed = Act::Answer(call_id(7), Answer::ToolCall(says("yes")));
    assert_eq!(acts, [handed, resolved("1", Resolution::Answered), reply(1, Ok(()))]);
    // Codex tells that it has seen the answer.
    let seen = News::RequestResolved(CallId::new(7));
    assert_eq!(sim.tell_of(THREAD, None, seen), []);
    assert_eq!(sim.on(answer(2, "1", "yes")), [reply(2, Ok(()))]);
    assert_eq!(sim.on(answer(3, "1", "no")), [reply(3, Err(Unanswerable::Resolved))]);
    for unknown in ["2", "0", "01", "+1", "x", ""] {
        assert_eq!(sim.on(answer(4, unknown, "x")), [reply(4, Err(Unanswerable::Unknown))]);
    }
    // The same when the turn is over, as long as somebody remembers it.
    sim.complete();
    assert!(sim.is_over());
    let record = sim.machine.into_record();
    let late =
        |id: &str, text: &str| record.look_up(id, given(Answer::ToolCall(says(text))).digest);
    assert_eq!(late("1", "yes"), Ok(()));
    assert_eq!(late("1", "no"), Err(Unanswerable::Resolved));
    assert_eq!(late("2", "no"), Err(Unanswerable::Unknown));
    let other = Answer::Approval(ApprovalAnswer::default());
    assert_eq!(record.look_up("1", given(other).digest), Err(Unanswerable::Resolved));
}

#[test]
fn an_answer_to_what_was_not_asked_is_told_so_in_every_stage() {
    let unknown = || [reply(1, Err(Unanswerable::Unknown))];
    for mut sim in
        [Sim::new(|_| {}), Sim::opening(|_| {}), Sim::quieting(|_| {}), Sim::live(|_| {})]
    {
        assert_eq!(sim.on(answer(1, "1", "x")), unknown());
    }
}

#[test]
fn an_answer_of_another_kind_is_none() {
    let mut sim = asking();
    let other = Answer::Approval(ApprovalAnswer::default());
    let given = Box::new(given(other));
    let acts = sim.on(Input::Answer { to: ReplyTo(1), request_id: "1".to_owned(), given });
    let [Act::ReplyAnswered { outcome: Err(Unanswerable::Unfit(faults)), .. }] = &*acts else {
        panic!("{acts:#?}");
    };
    assert_eq!(faults[0].field, "approval");
    assert!(faults[0].description.contains("tool_call"), "{faults:?}");
    assert_eq!(sim.on(answer(2, "1", "yes")).len(), 3, "it still waits");
}

#[test]
fn the_idle_clock_stands_still_and_the_turns_clock_does_not() {
    let mut sim = asking();
    assert_eq!(sim.machine.wake_at(), Some(sim.now + WITHIN));
    assert_eq!(sim.later(30 * SECOND), []);
    sim.on(answer(1, "1", "yes"));
    let warned = sim.later(SECOND - Duration::from_millis(1));
    assert_eq!(warned, [silent("500ms", "1s")]);
    assert_eq!(sim.later(Duration::from_millis(1)), [interrupts(FIRST)]);

    let mut sim = Sim::live(|request| request.turn_options.turn_timeout = Some(SECOND));
    sim.on(Input::Asked(tool_call(7), ask()));
    let withdrawn = resolved("1", Resolution::Withdrawn);
    assert_eq!(sim.later(SECOND), [interrupts(FIRST), Act::Decline(call_id(7)), withdrawn]);
}

#[test]
fn a_question_that_nobody_answers_is_declined_in_its_time() {
    let mut sim = asking();
    let timed_out = resolved("1", Resolution::TimedOut);
    assert_eq!(sim.later(WITHIN), [Act::Decline(call_id(7)), timed_out]);
    assert_eq!(sim.on(answer(1, "1", "yes")), [reply(1, Err(Unanswerable::Resolved))]);
    let acts = sim.later(SECOND);
    assert_eq!(acts, [silent("500ms", "1s"), interrupts(FIRST)], "the idle clock runs again");
}

#[test]
fn a_question_that_codex_takes_back_is_withdrawn() {
    for thread_id in [THREAD, "child"] {
        let mut sim = asking();
        let other = News::RequestResolved(CallId::new(8));
        assert_eq!(sim.tell_of(thread_id, None, other), []);
        let taken_back = News::RequestResolved(CallId::new(7));
        let acts = sim.tell_of(thread_id, None, taken_back);
        assert_eq!(acts, [resolved_by("1", Resolution::Withdrawn, "codex")]);
        assert_eq!(sim.on(answer(1, "1", "yes")), [reply(1, Err(Unanswerable::Resolved))]);
    }
}

#[test]
fn what_stops_or_ends_a_turn_withdraws_its_questions() {
    let withdrawn = || resolved("1", Resolution::Withdrawn);
    let mut sim = asking();
    // First the interruption: who is told no goes on.
    let acts = sim.on(Input::Stop(InterruptReason::InterruptRequested));
    assert_eq!(acts, [interrupts(FIRST), Act::Decline(call_id(7)), withdrawn()]);
    let acts = sim.on(Input::Asked(tool_call(8), ask()));
    let gone = resolved("2", Resolution::Withdrawn);
    assert_eq!(acts, [raised("2", false), Act::Decline(call_id(8)), gone], "nobody is asked");
    let acts = sim.on(Input::Asked(tool_call(9), Policy::Decline));
    assert_eq!(acts[1..], [Act::Decline(call_id(9)), resolved("3", Resolution::Declined)]);

    let mut sim = asking();
    let acts = sim.complete();
    assert_eq!(acts[1..3], [Act::Decline(call_id(7)), withdrawn()]);
    assert!(sim.is_over());

    // One that is only not heard any more waits for an answer all the same.
    let mut sim = asking();
    let acts = sim.lose_worker();
    assert_eq!(acts[..2], [Act::Decline(call_id(7)), withdrawn()]);
    assert!(sim.is_over());
}
