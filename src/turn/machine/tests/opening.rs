//! Before a turn has a thread.

use super::*;

fn unavailable(cause: &str) -> Act {
    let (cause, retry_after) = (cause.to_owned(), SECOND);
    Act::End(Outcome::Refused(Refusal::WorkerUnavailable { cause, retry_after }))
}

#[test]
fn a_turn_that_waits_tells_its_positions_and_its_clocks_do_not_run() {
    let mut sim = Sim::new(|request| request.turn_options.turn_timeout = Some(SECOND));
    assert!(sim.machine.waits() && !sim.machine.listens());
    for position in [2, 1] {
        assert_eq!(sim.on(Input::Queued(position)), [Act::Tell(Event::queued(position))]);
    }
    assert_eq!(sim.machine.wake_at(), None);
    assert_eq!(sim.later(10 * SECOND), []);
    assert_eq!(sim.on(Input::Tick), []);
    assert_eq!(sim.on(Input::Admitted), [Act::Open { after: None }]);
    assert_eq!(sim.machine.wake_at(), Some(sim.now + SECOND));
}

#[test]
fn a_turn_that_waits_is_stopped_at_once_and_not_steered() {
    let mut sim = Sim::new(|_| {});
    let outcome = Err("it waits in its queue".to_owned());
    assert_eq!(sim.on(Input::Steer(ReplyTo(1))), [Act::ReplySteered { to: ReplyTo(1), outcome }]);
    let stopped = sim.on(Input::Stop(InterruptReason::CallerDisconnected));
    assert_eq!(stopped, [interrupted(InterruptReason::CallerDisconnected, tokens(0))]);
    // Whatever comes then: it is over.
    assert_eq!(sim.on(Input::Admitted), []);
    assert_eq!(sim.on(Input::Stop(InterruptReason::Draining)), []);
    assert!(sim.is_over() && sim.machine.wake_at().is_none());
}

#[test]
fn a_turn_whose_thread_is_being_opened_is_stopped_at_once() {
    let mut sim = Sim::opening(|_| {});
    let stopped = sim.on(Input::Stop(InterruptReason::InterruptRequested));
    assert_eq!(stopped, [interrupted(InterruptReason::InterruptRequested, tokens(0))]);
    // The thread that it no longer needs is the driver's to undo.
    assert_eq!(sim.on(Input::Opened(Ok(opened()))), []);

    let mut sim = Sim::opening(|request| request.turn_options.turn_timeout = Some(SECOND));
    let acts = sim.later(SECOND);
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::TurnTimeout.as_str());
    assert!(!error.retryable && !error.side_effects_possible, "{error:#?}");
    assert!(error.message.contains("turn_timeout of 1s"), "{error:#?}");
}

#[test]
fn the_idle_clock_does_not_run_while_there_is_no_progress_to_miss() {
    let mut sim = Sim::opening(|request| request.turn_options.idle_timeout = Some(SECOND));
    assert_eq!(sim.machine.wake_at(), None);
    sim.on(Input::Opened(Ok(opened())));
    assert_eq!(sim.machine.wake_at(), Some(sim.now + SECOND));
    // Nor again, when the worker is lost before it could have seen the turn.
    sim.on(Input::Quieted(Err("it goes on".to_owned())));
    let again = Act::Open { after: Some("it goes on".to_owned()) };
    assert_eq!(sim.on(Input::GivenUp), [again]);
    assert_eq!(sim.machine.wake_at(), None);
}

#[test]
fn a_lost_worker_is_unseen_and_another_one_is_tried_three_times_in_all() {
    let mut sim = Sim::opening(|_| {});
    let lost = |cause: &str| Input::Opened(Err(OpenError::Lost(cause.to_owned())));
    assert_eq!(sim.on(lost("one")), [Act::Open { after: Some("one".to_owned()) }]);
    assert_eq!(sim.on(Input::Opened(Ok(opened()))), [Act::Quiet]);
    assert_eq!(sim.on(Input::Quieted(Ok(()))), [Act::Start]);
    let unwritten = ThreadError::Lost { cause: "two".to_owned(), written: false };
    let again = [Act::Open { after: Some("two".to_owned()) }];
    assert_eq!(sim.on(Input::Started(Err(unwritten))), again);
    assert_eq!(sim.on(lost("three")), [unavailable("three")]);
}

#[test]
fn a_refusal_ends_the_turn_without_a_word() {
    let mut sim = Sim::opening(|_| {});
    let refused = Input::Opened(Err(OpenError::Refused(Refusal::ContextBusy)));
    assert_eq!(sim.on(refused), [Act::End(Outcome::Refused(Refusal::ContextBusy))]);
}

#[test]
fn input_waits_for_codexs_turn_and_is_given_back_where_there_is_none() {
    let mut sim = Sim::opening(|_| {});
    assert_eq!(sim.on(Input::Steer(ReplyTo(1))), []);
    sim.on(Input::Opened(Ok(opened())));
    assert_eq!(sim.on(Input::Steer(ReplyTo(2))), []);
    sim.on(Input::Quieted(Ok(())));
    let acts = sim.on(Input::Started(Ok(begun())));
    let steer = |to| Act::Steer { to: ReplyTo(to), codex_turn_id: FIRST.to_owned() };
    assert_eq!(acts[acts.len() - 2..], [steer(1), steer(2)]);
    let taken = Act::ReplySteered { to: ReplyTo(2), outcome: Ok(FIRST.to_owned()) };
    assert_eq!(sim.on(Input::Steered(ReplyTo(2), Ok(()))), [taken]);
    assert_eq!(sim.on(Input::Steered(ReplyTo(2), Ok(()))), [], "told once");
    let refused = Act::ReplySteered { to: ReplyTo(1), outcome: Err("no".to_owned()) };
    assert_eq!(sim.on(Input::Steered(ReplyTo(1), Err("no".to_owned()))), [refused]);

    let mut sim = Sim::opening(|_| {});
    sim.on(Input::Steer(ReplyTo(1)));
    let ended = Act::ReplySteered { to: ReplyTo(1), outcome: Err("it has ended".to_owned()) };
    let refused = sim.on(Input::Opened(Err(OpenError::Refused(Refusal::ContextBusy))));
    assert_eq!(refused, [ended, Act::End(Outcome::Refused(Refusal::ContextBusy))]);
}

#[test]
fn a_clock_that_has_struck_keeps_the_thread_from_being_opened_again() {
    let mut sim = Sim::telling(|request| request.turn_options.turn_timeout = Some(SECOND));
    // It waits for what Codex says.
    assert_eq!(sim.later(SECOND), []);
    let unwritten = ThreadError::Lost { cause: "gone".to_owned(), written: false };
    let acts = sim.on(Input::Started(Err(unwritten)));
    assert_eq!(failure(&acts).reason, FailureReason::TurnTimeout.as_str());
    assert_eq!(acts.len(), 1, "nothing was told of it: {acts:#?}");
}
