//! How a turn is stopped with all that it owns, and how it ends.

use super::*;
use crate::app_server::settings::Settings;
use crate::model::failure::TurnError;

const REQUESTED: InterruptReason = InterruptReason::InterruptRequested;

fn stop() -> Input {
    Input::Stop(REQUESTED)
}

fn end_commands(items: &[&str]) -> Act {
    let items = items.iter().map(|item| (*item).to_owned()).collect();
    Act::EndCommands(vec![(thread(THREAD), items)])
}

fn ended(command: &str, killed: usize) -> Input {
    let commands = vec![command.to_owned()];
    Input::CommandsEnded(EndedCommands { commands, killed })
}

fn starts(item: Item) -> News {
    News::Event(Event::item_started(item))
}

fn ends(item: Item) -> News {
    News::Event(Event::item_completed(item))
}

/// Codex tells it after the turn's end, if it does.
#[test]
fn a_review_that_the_turns_end_cuts_off_is_told_as_given_up() {
    use crate::model::event::{ApprovalReviewStatus, ApprovalReviewed};
    let review = |id: &str, status: ApprovalReviewStatus| {
        let review_id = id.to_owned();
        let review = ApprovalReviewed { review_id, status: status.into(), ..Default::default() };
        Event::ApprovalReviewed(review)
    };
    let mut sim = Sim::live(|_| {});
    for id in ["1", "2"] {
        sim.tell(News::Event(review(id, ApprovalReviewStatus::InProgress)));
    }
    sim.tell(News::Event(review("1", ApprovalReviewStatus::Approved)));
    sim.on(stop());
    let acts = sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    let reviews = acts.iter().filter(|act| matches!(act, Act::Tell(Event::ApprovalReviewed(_))));
    let given_up = Act::Tell(review("2", ApprovalReviewStatus::Aborted));
    assert_eq!(reviews.collect::<Vec<_>>(), [&given_up]);
    assert_eq!(acts.last(), Some(&interrupted(REQUESTED, tokens(100))));
}

#[test]
fn a_stop_interrupts_what_runs_and_the_first_reason_stays() {
    let mut sim = Sim::live(|_| {});
    assert_eq!(sim.on(stop()), [interrupts(FIRST)]);
    assert_eq!(sim.on(Input::Stop(InterruptReason::Draining)), [], "once");
    let acts = sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    let end = interrupted(REQUESTED, tokens(100));
    assert_eq!(acts, [Act::NoteCompleted, kept(false), end]);
}

#[test]
fn a_turn_that_is_being_stopped_still_takes_what_is_told_and_wanted() {
    let mut sim = Sim::live(|request| {
        request.turn_options.max_total_tokens = NonZeroU64::new(1);
        request.turn_options.turn_timeout = Some(SECOND);
    });
    sim.on(stop());
    // No other cause takes its place.
    assert_eq!(sim.tell(usage(120, 20)).len(), 1);
    assert_eq!(sim.later(SECOND), []);
    assert_eq!(sim.tell(says("last words")).len(), 1);
    let steer = Act::Steer { to: ReplyTo(1), codex_turn_id: FIRST.to_owned() };
    assert_eq!(sim.on(Input::Steer(ReplyTo(1))), [steer]);
    sim.on(Input::Steered(ReplyTo(1), Err("too late".to_owned())));
    let acts = sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    let Some(Act::End(Outcome::Interrupted { usage, .. })) = acts.last() else {
        panic!("{acts:#?}")
    };
    assert_eq!(*usage, tokens(20));

    let mut sim = Sim::live(|_| {});
    sim.on(stop());
    let acts = sim.lose_worker();
    assert_eq!(failure(&acts).reason, FailureReason::WorkerLost.as_str());
}

#[test]
fn a_turn_that_was_over_before_it_could_be_stopped_is_told_as_it_ended() {
    let mut sim = Sim::live(|_| {});
    sim.tell(says("done"));
    sim.on(stop());
    assert_eq!(sim.complete().last(), Some(&completed("done")));
    let mut sim = Sim::live(|_| {});
    sim.on(stop());
    let end = TurnEnd::Failed(TurnError::new(FailureReason::CodexError, "no"));
    sim.tell(News::TurnEnded(end));
    assert_eq!(failure(&sim.on(Input::HadNoAnswer(true))).message, "no");
}

#[test]
fn each_clock_stops_the_turn_and_says_so() {
    let mut sim = Sim::live(|request| request.turn_options.turn_timeout = Some(10 * SECOND));
    assert_eq!(sim.later(10 * SECOND), [interrupts(FIRST)]);
    sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    let acts = sim.on(Input::HadNoAnswer(true));
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::TurnTimeout.as_str());
    assert!(!error.retryable && !error.side_effects_possible);

    let mut sim = Sim::live(|request| request.turn_options.idle_timeout = Some(3 * SECOND));
    assert_eq!(sim.later(2 * SECOND), [silent("1s 500ms", "3s")]);
    sim.tell(says("still here"));
    assert_eq!(sim.later(2 * SECOND), [silent("1s 500ms", "3s")]);
    assert_eq!(sim.later(SECOND), [interrupts(FIRST)]);
    let acts = sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::IdleTimeout.as_str());
    assert!(error.retryable && error.side_effects_possible, "it had said something: {error:#?}");
    assert!(error.message.contains("idle_timeout of 3s"), "{error:#?}");
}

#[test]
fn an_end_that_is_told_in_time_goes_before_a_clock_that_is_looked_at_later() {
    let mut sim = Sim::live(|request| request.turn_options.turn_timeout = Some(SECOND));
    sim.now += 5 * SECOND;
    sim.tell(says("done"));
    assert_eq!(sim.complete().last(), Some(&completed("done")));
}

#[test]
fn more_tokens_than_allowed_stop_the_turn_also_at_its_end() {
    let most = |request: &mut TurnRequest| {
        request.turn_options.max_total_tokens = NonZeroU64::new(20);
    };
    let mut sim = Sim::live(most);
    assert_eq!(sim.tell(usage(120, 20)).len(), 1, "as many as allowed");
    assert_eq!(sim.tell(usage(121, 1)).last(), Some(&interrupts(FIRST)));
    sim.tell(News::TurnEnded(TurnEnd::Completed));
    let acts = sim.on(Input::HadNoAnswer(true));
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::BudgetExceeded.as_str());
    assert!(!error.retryable && error.message.contains("used 21 tokens"), "{error:#?}");
}

#[test]
fn nothing_is_told_but_the_end_once_more_came_into_force_than_was_asked() {
    let mut sim = Sim::telling(|_| {});
    // Codex tells its settings, and has not.
    let gate = Gate::new(Settings::in_directory("/w"), None, true);
    sim.on(Input::Started(Ok(Begun { gate, ..begun() })));
    assert_eq!(sim.tell_of(THREAD, None, News::Other), [], "not yet of the turn");
    assert_eq!(sim.tell(says("x")), [interrupts(FIRST)]);
    assert_eq!(sim.on(Input::Asked(tool_call(1), Policy::Decline)), [Act::Decline(call_id(1))]);
    let acts = sim.tell(News::TurnEnded(TurnEnd::Completed));
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::SettingsNotApplied.as_str());
    assert!(error.message.contains("did not say what came into force"), "{error:#?}");
    assert_eq!(acts[..2], [Act::NoteCompleted, kept(false)]);
}

#[test]
fn what_came_into_force_is_kept_for_the_next_turn() {
    let settings = Settings::in_directory("/w");
    let mut sim = Sim::telling(|_| {});
    let gate = Gate::new(settings.clone(), None, true);
    sim.on(Input::Started(Ok(Begun { gate, ..begun() })));
    sim.tell_of(THREAD, None, News::Settings(settings.clone()));
    // Those of a sub-agent's thread are not this turn's.
    sim.tell_of("child", None, News::Settings(Settings::in_directory("/elsewhere")));
    let acts = sim.complete();
    let in_force = Some(settings);
    let kept = Kept { has_begun: false, in_force, usage: Some(tokens(100)) };
    assert_eq!(acts[1], Act::Keep(kept));
}

#[test]
fn a_turn_that_does_not_end_in_time_is_given_up_with_its_commands() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.on(stop());
    assert_eq!(sim.later(GRACE - SECOND), []);
    // Whatever it tells meanwhile.
    assert_eq!(sim.tell(says("still here")).len(), 1);
    assert_eq!(sim.later(SECOND), [end_commands(&["c"])]);
    assert!(!sim.machine.listens());
    assert_eq!(sim.complete(), []);
    assert_eq!(sim.on(ended("sleep", 0)), [Act::GiveUp]);
    let acts = sim.on(Input::GivenUp);
    assert_eq!(acts, [kept(false), interrupted(REQUESTED, tokens(100))]);

    let mut sim = Sim::live(|request| request.turn_options.turn_timeout = Some(SECOND));
    assert_eq!(sim.later(SECOND + GRACE), [interrupts(FIRST), Act::GiveUp]);
    let acts = sim.on(Input::GivenUp);
    assert!(failure(&acts).side_effects_possible, "what it goes on doing nobody knows");
}

#[test]
fn sub_agents_are_stopped_with_the_turn_and_those_that_come_late_too() {
    let mut sim = Sim::live(|_| {});
    sim.begins("child", "2");
    let acts = sim.on(stop());
    assert_eq!(acts, [interrupts(FIRST), interrupts_on("child", "2")]);
    let acts = sim.begins("late", "3");
    assert_eq!(acts.last(), Some(&interrupts_on("late", "3")));
    assert_eq!(sim.complete(), []);
    let interrupted_end = || News::TurnEnded(TurnEnd::Interrupted);
    sim.tell_of("child", Some("2"), interrupted_end());
    let acts = sim.tell_of("late", Some("3"), interrupted_end());
    // Codex was done with its own part, but the turn was not.
    assert_eq!(acts.last(), Some(&interrupted(REQUESTED, tokens(100))));
}

#[test]
fn a_turn_that_codex_ends_badly_does_not_wait_for_what_it_had_started() {
    let mut sim = Sim::live(|_| {});
    sim.begins("child", "2");
    let end = TurnEnd::Failed(TurnError::new(FailureReason::CodexError, "no"));
    assert_eq!(sim.tell(News::TurnEnded(end)), [interrupts_on("child", "2")]);
    assert_eq!(sim.on(stop()), [], "it is being stopped already");
    sim.tell_of("child", Some("2"), News::TurnEnded(TurnEnd::Interrupted));
    assert_eq!(failure(&sim.on(Input::HadNoAnswer(true))).message, "no");
    // An interruption that nobody asked for is Codex's own.
    let mut sim = Sim::live(|_| {});
    let acts = sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    assert_eq!(acts.last(), Some(&interrupted(InterruptReason::Codex, tokens(100))));
}

#[test]
fn commands_that_run_at_the_end_are_ended_and_told() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    assert_eq!(sim.complete(), [Act::NoteCompleted, end_commands(&["c"])]);
    // Codex may tell their ends after that of the turn.
    assert!(sim.machine.listens());
    assert_eq!(sim.on(ended("sleep", 2)), []);
    let acts = sim.tell(ends(command("c")));
    assert!(matches!(acts[0], Act::Tell(Event::ItemCompleted(_))), "{acts:#?}");
    let Act::Tell(Event::Warning(warning)) = &acts[1] else { panic!("{acts:#?}") };
    assert_eq!(warning.code, WarningCode::CommandsEnded.as_str());
    assert!(warning.message.contains("were ended: 1, and with them processes"), "{warning:#?}");
    assert_eq!(warning.details, "sleep");
    assert_eq!(acts[2..], [kept(false), completed(NO_WORDS)]);

    // But not for long.
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.complete();
    sim.on(Input::CommandsEnded(EndedCommands::default()));
    assert_eq!(sim.later(Duration::from_millis(499)), []);
    let acts = sim.later(Duration::from_millis(1));
    assert_eq!(acts, [kept(false), completed(NO_WORDS)], "nothing had to be ended");

    // Those that have ended may have left something.
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.tell(ends(command("c")));
    assert_eq!(sim.complete(), [Act::NoteCompleted, end_commands(&[])]);
    let killed = EndedCommands { commands: Vec::new(), killed: 1 };
    let acts = sim.on(Input::CommandsEnded(killed));
    let Act::Tell(Event::Warning(warning)) = &acts[0] else { panic!("{acts:#?}") };
    assert!(warning.message.contains("had left running were ended: 1"), "{warning:#?}");
}

#[test]
fn commands_of_a_turn_that_was_stopped_are_ended_without_a_word() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.on(stop());
    sim.tell(News::TurnEnded(TurnEnd::Interrupted));
    assert!(!sim.machine.listens());
    let acts = sim.on(ended("sleep", 2));
    assert_eq!(acts, [kept(false), interrupted(REQUESTED, tokens(100))]);
}

#[test]
fn a_worker_that_dies_while_the_turn_ends_changes_no_end() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.complete();
    assert_eq!(sim.lose_worker(), []);
    sim.on(Input::CommandsEnded(EndedCommands::default()));
    assert_eq!(sim.lose_worker(), [kept(false), completed(NO_WORDS)]);
}

#[test]
fn codex_may_go_on_while_the_commands_are_being_ended() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.complete();
    assert_eq!(sim.begins(THREAD, "2"), [Act::Tell(Event::turn_started("2", None))]);
    assert_eq!(sim.on(ended("sleep", 0)), [], "it runs");
    assert_eq!(sim.on(stop()), [interrupts("2")]);
    let acts = sim.tell_of(THREAD, Some("2"), News::TurnEnded(TurnEnd::Interrupted));
    assert_eq!(acts, [Act::NoteCompleted, end_commands(&["c"])]);
}

#[test]
fn commands_that_were_ended_before_codex_went_on_are_told_at_the_end() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.complete();
    sim.begins(THREAD, "2");
    sim.on(ended("sleep", 1));
    sim.tell(ends(command("c")));
    let acts = sim.tell_of(THREAD, Some("2"), News::TurnEnded(TurnEnd::Completed));
    assert_eq!(acts, [Act::NoteCompleted, end_commands(&[])]);
    let acts = sim.on(Input::CommandsEnded(EndedCommands::default()));
    let Act::Tell(Event::Warning(warning)) = &acts[0] else { panic!("{acts:#?}") };
    assert_eq!(warning.details, "sleep");
}

/// Else the turn would end with what it had left running, and nobody would end that.
#[test]
fn a_turn_does_not_end_before_all_of_its_commands_are_ended() {
    let mut sim = Sim::live(|_| {});
    sim.tell(starts(command("c")));
    sim.complete();
    sim.begins(THREAD, "2");
    sim.tell_of(THREAD, Some("2"), News::TurnEnded(TurnEnd::Completed));
    sim.tell(ends(command("c")));
    assert_eq!(sim.on(ended("sleep", 0)), [], "the first of two");
    let acts = sim.on(ended("sleep 2", 0));
    let Act::Tell(Event::Warning(warning)) = &acts[0] else { panic!("{acts:#?}") };
    assert_eq!(warning.details, "sleep\nsleep 2");
    assert_eq!(acts[1..], [kept(false), completed(NO_WORDS)]);
}

#[test]
fn ephemeral_threads_are_forgotten_before_the_end() {
    let mut sim = Sim::live(|request| request.ephemeral = true);
    sim.begins("child", "2");
    sim.tell_of("child", Some("2"), News::TurnEnded(TurnEnd::Completed));
    let forget = Act::Forget { agents: vec![thread("child")] };
    assert_eq!(sim.complete(), [Act::NoteCompleted, kept(false), forget]);
    assert_eq!(sim.on(stop()), []);
    assert_eq!(sim.on(Input::Forgotten), [completed(NO_WORDS)]);
}

#[test]
fn input_that_is_under_way_is_settled_before_the_end_but_not_for_ever() {
    let taken = Act::ReplySteered { to: ReplyTo(1), outcome: Ok(FIRST.to_owned()) };
    let mut sim = Sim::live(|_| {});
    sim.on(Input::Steer(ReplyTo(1)));
    assert_eq!(sim.complete(), [Act::NoteCompleted]);
    let late = Act::ReplySteered { to: ReplyTo(2), outcome: Err("it has ended".to_owned()) };
    assert_eq!(sim.on(Input::Steer(ReplyTo(2))), [late]);
    let acts = sim.on(Input::Steered(ReplyTo(1), Ok(())));
    assert_eq!(acts, [taken, kept(false), completed(NO_WORDS)]);

    let mut sim = Sim::live(|_| {});
    sim.on(Input::Steer(ReplyTo(1)));
    sim.complete();
    let ended = Act::ReplySteered { to: ReplyTo(1), outcome: Err("it has ended".to_owned()) };
    assert_eq!(sim.later(GRACE), [kept(false), ended, completed(NO_WORDS)]);
}

mod goals {
    use super::*;

    fn clear(ask_first: bool) -> Act {
        Act::ClearGoals { threads: vec![thread(THREAD)], ask_first }
    }

    fn cleared() -> Input {
        Input::GoalsCleared(vec![thread(THREAD)])
    }

    fn see() -> Act {
        Act::SeeGoals { threads: vec![thread(THREAD)] }
    }

    /// At rest, with a goal that Codex does not go on with.
    fn at_rest() -> Sim {
        let mut sim = Sim::live(|_| {});
        sim.goal(THREAD, true);
        sim.complete();
        assert_eq!(sim.later(2 * SECOND), [clear(true)]);
        sim
    }

    #[test]
    fn whatever_stops_a_turn_takes_its_goal_away() {
        let mut sim = Sim::live(|_| {});
        sim.goal(THREAD, true);
        assert_eq!(sim.on(stop()), [clear(false), interrupts(FIRST)]);
        assert_eq!(sim.tell(News::TurnEnded(TurnEnd::Interrupted)), [], "they are being cleared");
        assert_eq!(sim.goal(THREAD, false), []);
        // It may have begun to go on just then.
        assert_eq!(sim.on(cleared()), [see()]);
        let acts = sim.on(Input::GoalsSeen(false));
        assert_eq!(acts.last(), Some(&interrupted(REQUESTED, tokens(100))));

        // Where there was none, nothing is looked for.
        let mut sim = Sim::telling(|_| {});
        sim.on(Input::Started(Ok(Begun { may_have_goal: true, ..begun() })));
        assert_eq!(sim.on(stop()), [clear(false), interrupts(FIRST)]);
        assert_eq!(sim.on(Input::GoalsCleared(Vec::new())), []);
        let acts = sim.tell(News::TurnEnded(TurnEnd::Interrupted));
        assert_eq!(acts.last(), Some(&interrupted(REQUESTED, tokens(100))));
    }

    #[test]
    fn a_continuation_that_had_begun_before_the_goal_went_is_interrupted_too() {
        let mut sim = Sim::live(|_| {});
        sim.goal(THREAD, true);
        sim.on(stop());
        sim.on(cleared());
        sim.goal(THREAD, false);
        assert_eq!(sim.tell(News::TurnEnded(TurnEnd::Interrupted)), [see()]);
        assert_eq!(sim.on(Input::GoalsSeen(true)), [], "its begin is about to be told");
        let begins = sim.begins(THREAD, "2");
        assert_eq!(begins, [Act::Tell(Event::turn_started("2", None)), interrupts("2")]);
        let acts = sim.tell_of(THREAD, Some("2"), News::TurnEnded(TurnEnd::Interrupted));
        assert_eq!(acts.last(), Some(&interrupted(REQUESTED, tokens(100))));
    }

    #[test]
    fn a_goal_that_codex_does_not_go_on_with_is_taken_away_at_rest() {
        let mut sim = at_rest();
        assert_eq!(sim.on(cleared()), [see()]);
        let acts = sim.on(Input::GoalsSeen(false));
        assert_eq!(acts.last(), Some(&completed(NO_WORDS)));

        // What begins all the same is the turn's.
        let mut sim = at_rest();
        sim.on(cleared());
        sim.on(Input::GoalsSeen(true));
        assert_eq!(sim.begins(THREAD, "2"), [Act::Tell(Event::turn_started("2", None))]);
        let acts = sim.tell_of(THREAD, Some("2"), News::TurnEnded(TurnEnd::Completed));
        assert_eq!(acts.last(), Some(&completed(NO_WORDS)));
    }

    #[test]
    fn goals_are_waited_for_no_longer_than_the_grace() {
        // They are not cleared in time.
        let mut sim = at_rest();
        assert_eq!(sim.later(GRACE).last(), Some(&completed(NO_WORDS)));
        // It does not show in time.
        let mut sim = at_rest();
        sim.on(cleared());
        assert_eq!(sim.later(GRACE).last(), Some(&completed(NO_WORDS)));
        // What was said to begin does not.
        let mut sim = at_rest();
        sim.on(cleared());
        sim.on(Input::GoalsSeen(true));
        assert_eq!(sim.later(GRACE).last(), Some(&completed(NO_WORDS)));
        // The same while the turn is being stopped.
        let mut sim = Sim::live(|_| {});
        sim.goal(THREAD, true);
        sim.on(stop());
        sim.tell(News::TurnEnded(TurnEnd::Interrupted));
        assert_eq!(sim.later(GRACE), [clear(true)], "once more, at rest");
        let acts = sim.later(GRACE);
        assert_eq!(acts.last(), Some(&interrupted(REQUESTED, tokens(100))));
    }

    #[test]
    fn a_stop_at_rest_waits_until_there_is_something_to_stop() {
        let mut sim = at_rest();
        assert_eq!(sim.on(stop()), []);
        sim.on(cleared());
        assert_eq!(sim.on(Input::GoalsSeen(false)).last(), Some(&completed(NO_WORDS)));
        let mut sim = at_rest();
        sim.on(stop());
        sim.on(cleared());
        sim.on(Input::GoalsSeen(true));
        let begins = sim.begins(THREAD, "2");
        assert_eq!(begins, [Act::Tell(Event::turn_started("2", None)), interrupts("2")]);
    }
}
