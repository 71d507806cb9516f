//! From an open thread to Codex's turn on it.

use super::*;

fn overloaded() -> Input {
    Input::Started(Err(ThreadError::Overloaded("too much".to_owned())))
}

fn steered() -> Input {
    Input::Started(Err(ThreadError::Steered("foreign".to_owned())))
}

const END_FOREIGN: fn() -> Act = || Act::EndForeign { codex_turn_id: "foreign".to_owned() };

#[test]
fn what_is_known_when_codex_takes_the_turn_is_told_in_order() {
    let mut sim = Sim::telling(|_| {});
    let status = McpServerStatus { server: "tickets".to_owned(), ..Default::default() };
    let begun =
        Begun { stopped: vec!["foreign".to_owned()], mcp_servers: vec![status.clone()], ..begun() };
    let acts = sim.on(Input::Started(Ok(begun)));
    assert_eq!(acts[..4], introduced());
    let Act::Tell(Event::Warning(warning)) = &acts[4] else { panic!("{acts:#?}") };
    assert_eq!(warning.code, WarningCode::UnownedTurnStopped.as_str());
    let rest = [Event::turn_started(FIRST, None), Event::McpServerStatus(status)];
    assert_eq!(acts[5..], rest.map(Act::Tell));
}

#[test]
fn a_turn_that_must_stop_before_codex_knows_of_it_ends_untold() {
    for is_ephemeral in [false, true] {
        let mut sim = Sim::quieting(|request| request.ephemeral = is_ephemeral);
        let mut acts = sim.on(Input::Stop(InterruptReason::InterruptRequested));
        if is_ephemeral {
            assert_eq!(acts, [Act::Forget { agents: Vec::new() }]);
            acts = sim.on(Input::Forgotten);
        }
        assert_eq!(acts, [interrupted(InterruptReason::InterruptRequested, tokens(0))]);
    }
    let mut sim = Sim::quieting(|request| request.turn_options.idle_timeout = Some(SECOND));
    let acts = sim.later(SECOND);
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::IdleTimeout.as_str());
    assert!(error.retryable && !error.side_effects_possible);
}

#[test]
fn a_cause_to_stop_waits_for_codexs_answer_but_not_beyond_the_grace() {
    let mut sim = Sim::telling(|_| {});
    assert_eq!(sim.on(Input::Stop(InterruptReason::InterruptRequested)), []);
    let acts = sim.on(Input::Started(Ok(begun())));
    assert_eq!(acts[..5], introduced_then([Act::Tell(Event::turn_started(FIRST, None))]));
    assert_eq!(acts[5..], [interrupts(FIRST)]);

    // Whether it has begun can't be known: the thread is given up.
    let mut sim = Sim::telling(|_| {});
    sim.on(Input::Stop(InterruptReason::InterruptRequested));
    assert_eq!(sim.later(GRACE), introduced_then([Act::GiveUp]));
    assert_eq!(sim.on(Input::Started(Ok(begun()))), [], "too late");
    let acts = sim.on(Input::GivenUp);
    assert_eq!(acts, [interrupted(InterruptReason::InterruptRequested, tokens(0))]);
    let mut sim = Sim::telling(|request| request.turn_options.turn_timeout = Some(SECOND));
    sim.later(SECOND + GRACE);
    let acts = sim.on(Input::GivenUp);
    let error = failure(&acts);
    assert!(error.side_effects_possible && error.reason == FailureReason::TurnTimeout.as_str());
}

#[test]
fn a_thread_that_does_not_get_quiet_is_given_up_and_opened_again() {
    let mut sim = Sim::quieting(|_| {});
    assert_eq!(sim.on(Input::Quieted(Err("it goes on".to_owned()))), [Act::GiveUp]);
    assert_eq!(sim.on(Input::GivenUp), [Act::Open { after: Some("it goes on".to_owned()) }]);
}

#[test]
fn a_turn_that_codex_took_as_input_is_started_again_once_that_turn_has_ended() {
    let mut sim = Sim::telling(|_| {});
    for _ in 0..2 {
        assert_eq!(sim.on(steered()), [END_FOREIGN()]);
        assert_eq!(sim.on(Input::ForeignEnded(true)), [Act::Quiet]);
        assert_eq!(sim.on(Input::Quieted(Ok(()))), [Act::Start]);
    }
    // Not for ever.
    assert_eq!(sim.on(steered()), [END_FOREIGN()]);
    let acts = sim.on(Input::ForeignEnded(true));
    assert_eq!(acts, introduced_then([Act::GiveUp]));
    let acts = sim.on(Input::GivenUp);
    assert_eq!(failure(&acts).reason, FailureReason::WorkerProtocol.as_str());
    assert!(failure(&acts).retryable);

    // Nor where it can't be ended; an ephemeral thread is forgotten then.
    let mut sim = Sim::telling(|request| request.ephemeral = true);
    sim.on(steered());
    assert_eq!(sim.on(Input::ForeignEnded(false)).last(), Some(&Act::GiveUp));
    assert_eq!(sim.on(Input::GivenUp), [Act::Forget { agents: Vec::new() }]);
    assert!(failure(&sim.on(Input::Forgotten)).message.contains("foreign"));
}

#[test]
fn a_cause_to_stop_keeps_a_turn_from_being_started_again() {
    let mut sim = Sim::telling(|_| {});
    sim.on(steered());
    assert_eq!(sim.on(Input::Stop(InterruptReason::Draining)), []);
    assert_eq!(sim.machine.wake_at(), None);
    let acts = sim.on(Input::ForeignEnded(true));
    assert_eq!(acts, [interrupted(InterruptReason::Draining, tokens(0))]);

    let mut sim = Sim::telling(|_| {});
    sim.on(Input::Stop(InterruptReason::Draining));
    sim.on(steered());
    let acts = sim.on(Input::ForeignEnded(true));
    assert_eq!(acts.last(), Some(&Act::GiveUp));
    assert_eq!(sim.on(Input::GivenUp), [interrupted(InterruptReason::Draining, tokens(0))]);
}

#[test]
fn an_overloaded_codex_is_asked_again_with_patience() {
    let mut sim = Sim::telling(|_| {});
    for pause in PATIENCE {
        assert_eq!(sim.on(overloaded()), []);
        assert_eq!(sim.later(pause - Duration::from_millis(1)), []);
        assert_eq!(sim.later(Duration::from_millis(1)), [Act::Quiet]);
        assert_eq!(sim.on(Input::Quieted(Ok(()))), [Act::Start]);
    }
    // The thread is the context's; the turn has not begun.
    let acts = sim.on(overloaded());
    assert_eq!(acts[0], Act::Bind);
    let [_, Act::End(Outcome::Refused(Refusal::WorkerUnavailable { cause, .. }))] = &acts[..]
    else {
        panic!("{acts:#?}")
    };
    assert!(cause.contains("too much"), "{cause}");

    let mut sim = Sim::telling(|_| {});
    sim.on(overloaded());
    let acts = sim.on(Input::Stop(InterruptReason::Draining));
    assert_eq!(acts, [Act::Bind, interrupted(InterruptReason::Draining, tokens(0))]);
    // A cause that is there is reason enough not to ask again.
    let mut sim = Sim::telling(|_| {});
    sim.on(Input::Stop(InterruptReason::Draining));
    let acts = sim.on(overloaded());
    assert_eq!(acts, [Act::Bind, interrupted(InterruptReason::Draining, tokens(0))]);
}

#[test]
fn a_worker_that_died_of_the_turn_is_told_and_one_that_is_silent_is_killed() {
    let mut sim = Sim::telling(|_| {});
    let lost = ThreadError::Lost { cause: "no answer".to_owned(), written: true };
    let acts = sim.on(Input::Started(Err(lost)));
    assert_eq!(acts, introduced_then([Act::Kill("it did not answer turn/start")]));
    let acts = sim.lose_worker();
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::WorkerLost.as_str());
    assert!(error.retryable && error.side_effects_possible);
    assert!(error.message.contains("exit status 3 (no answer)"), "{error:#?}");
}

#[test]
fn an_answer_that_cant_be_read_gives_the_thread_up() {
    let mut sim = Sim::telling(|_| {});
    let acts = sim.on(Input::Started(Err(ThreadError::Unreadable("garbled".to_owned()))));
    assert_eq!(acts, introduced_then([Act::GiveUp]));
    let acts = sim.on(Input::GivenUp);
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::WorkerProtocol.as_str());
    assert!(!error.retryable && error.side_effects_possible, "{error:#?}");
}

#[test]
fn what_codex_refuses_fails_the_turn_and_its_thread_is_known() {
    for is_ephemeral in [false, true] {
        let mut sim = Sim::telling(|request| request.ephemeral = is_ephemeral);
        let mut acts = sim.on(Input::Started(Err(ThreadError::Refused("no".to_owned()))));
        assert_eq!(acts[..4], introduced());
        if is_ephemeral {
            assert_eq!(acts[4..], [Act::Forget { agents: Vec::new() }]);
            acts = sim.on(Input::Forgotten);
        }
        let error = failure(&acts);
        assert_eq!(error.reason, FailureReason::BadRequest.as_str());
        assert!(!error.side_effects_possible && error.message.ends_with(": no"), "{error:#?}");
    }
}

#[test]
fn a_question_that_comes_too_early_is_declined() {
    let mut sim = Sim::telling(|_| {});
    let acts = sim.on(Input::Asked(tool_call(1), Policy::Decline));
    assert_eq!(acts, [Act::Decline(call_id(1))]);
}
