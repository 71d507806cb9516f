use super::lanes::Waiting;
use super::*;
use crate::model::event::InterruptReason;
use crate::model::request::TurnRequest;
use crate::turn::retained::Retained;
use crate::turn::turn::{Command, Mailbox};
use proptest::prelude::*;

fn entrant(name: usize) -> Entrant {
    let context = ContextKey {
        tenant: Tenant::default(),
        context_id: name.to_string(),
        thread_key: String::new(),
    };
    Entrant {
        tenant: Tenant::default(),
        caller: CallerId::default(),
        context: Some(context),
        thread: None,
        follows_context: true,
        policy: BusyPolicy::Queue,
        turn: Weak::new(),
        bytes: name,
    }
}

fn thread(name: usize) -> ThreadId {
    ThreadId::from_codex(name.to_string())
}

fn position(ticket: &Ticket) -> QueuePosition {
    *ticket.position.borrow()
}

const LIMITS: AdmissionLimits = AdmissionLimits {
    max_running_turns: 2,
    max_running_turns_per_tenant: 2,
    max_waiting_turns: 4,
    max_waiting_turns_per_context: 2,
};

fn take_in(
    admission: &Arc<Admission>,
    entrant: impl FnOnce() -> Result<Entrant, Refusal>,
) -> Result<Ticket, Refusal> {
    admission.admit(|_| entrant(), || ())
}

fn admit(admission: &Arc<Admission>, name: usize) -> Result<Ticket, Refusal> {
    take_in(admission, || Ok(entrant(name)))
}

#[test]
fn many_callers_with_a_little_each_leave_room_for_who_has_nothing_waiting() {
    let limits = AdmissionLimits { max_waiting_turns: 256, ..LIMITS };
    let admission = Admission::new(limits);
    let mut held = Vec::new();
    let mut admit = |caller: u64| {
        let caller = CallerId(caller);
        let mut name = held.len();
        let ticket = take_in(&admission, || {
            name += 1;
            Ok(Entrant { caller, ..entrant(name) })
        });
        ticket.map(|ticket| held.push(ticket))
    };
    for _ in 0..100 {
        for caller in 1..=40 {
            let _ = admit(caller);
        }
    }
    assert!(matches!(admit(1), Err(Refusal::QueueShareFull { .. })));
    for caller in 41..=56 {
        admit(caller).unwrap();
    }
}

#[test]
fn turns_of_a_lane_run_in_order_and_are_told_their_position() {
    let admission = Admission::new(LIMITS);
    let first = admit(&admission, 1).unwrap();
    let second = admit(&admission, 1).unwrap();
    let third = admit(&admission, 1).unwrap();
    let other = admit(&admission, 2).unwrap();
    assert_eq!(
        [&first, &second, &third, &other].map(position),
        [
            QueuePosition::Running,
            QueuePosition::Waiting(1),
            QueuePosition::Waiting(2),
            QueuePosition::Running
        ]
    );
    assert!(matches!(admit(&admission, 1), Err(Refusal::ContextQueueFull { waiting: 2, .. })));
    let rejected = take_in(&admission, || Ok(Entrant { policy: BusyPolicy::Reject, ..entrant(2) }));
    assert_eq!(rejected.unwrap_err(), Refusal::ContextBusy);
    let (fourth, _fifth) = (admit(&admission, 4).unwrap(), admit(&admission, 5).unwrap());
    assert_eq!(position(&fourth), QueuePosition::Waiting(1));
    assert!(matches!(admit(&admission, 6), Err(Refusal::QueueFull { waiting: 4, .. })));
    drop(first);
    // The room goes to the one who waited longest for it, not to the lane.
    assert_eq!(
        [&second, &third, &fourth].map(position),
        [QueuePosition::Waiting(2), QueuePosition::Waiting(1), QueuePosition::Running]
    );
    drop((second, other));
    assert_eq!(position(&third), QueuePosition::Waiting(1));
}

fn on_thread(admission: &Arc<Admission>, name: usize, on: usize) -> Ticket {
    let entrant = Entrant { thread: Some(thread(on)), follows_context: false, ..entrant(name) };
    take_in(admission, || Ok(entrant)).unwrap()
}

#[test]
fn contexts_that_name_one_thread_wait_for_it_and_leave_the_room_to_others() {
    let admission = Admission::new(AdmissionLimits { max_waiting_turns_per_context: 1, ..LIMITS });
    let busy = admit(&admission, 1).unwrap();
    let follows = admit(&admission, 1).unwrap();
    // Its first turn: the thread was not known when it was admitted.
    busy.note_thread(&thread(7));
    let named = [on_thread(&admission, 2, 7), on_thread(&admission, 3, 7)];
    let innocent = admit(&admission, 4).unwrap();
    let positions = |tickets: [&Ticket; 3]| tickets.map(position);
    let waiting = QueuePosition::Waiting;
    assert_eq!(positions([&follows, &named[0], &named[1]]), [1, 2, 3].map(waiting));
    assert_eq!(position(&innocent), QueuePosition::Running);
    let rejected = Entrant { thread: Some(thread(7)), policy: BusyPolicy::Reject, ..entrant(5) };
    assert_eq!(take_in(&admission, || Ok(rejected)).unwrap_err(), Refusal::ContextBusy);
    drop(busy);
    assert_eq!(position(&follows), QueuePosition::Running);
    // The context gets another thread: those that follow it don't wait for the old one.
    let last = admit(&admission, 1).unwrap();
    follows.note_thread(&thread(8));
    drop(innocent);
    assert_eq!(
        positions([&named[0], &named[1], &last]),
        [QueuePosition::Running, waiting(1), waiting(1)]
    );
}

#[test]
fn one_that_supersedes_goes_before_those_that_wait_and_the_later_before_the_earlier() {
    let admission = Admission::new(AdmissionLimits {
        max_running_turns: 8,
        max_running_turns_per_tenant: 8,
        max_waiting_turns: 9,
        ..LIMITS
    });
    let retained = Retained::new(1 << 20, 1 << 20);
    let turn = || Turn::new(&TurnRequest::default(), Arc::clone(&retained));
    let superseding = |entrant: Entrant, turn: &Arc<Turn>| {
        let (policy, turn) = (BusyPolicy::Interrupt, Arc::downgrade(turn));
        take_in(&admission, || Ok(Entrant { policy, turn, ..entrant })).unwrap()
    };
    let (one, mut told_one) = turn();
    let (two, mut told_two) = turn();
    let (three, mut told_three) = turn();
    let (other, mut told_other) = turn();
    let ticket = take_in(&admission, || {
        Ok(Entrant { turn: Arc::downgrade(&one), thread: Some(thread(7)), ..entrant(1) })
    });
    let running = ticket.unwrap();
    let waiting = [admit(&admission, 1).unwrap(), admit(&admission, 1).unwrap()];
    let told = |told: &mut Mailbox| match told.try_recv() {
        Ok(Command::Stop(reason)) => Some(reason),
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    };
    assert!(told(&mut told_one).is_none());
    // The lane is full for others.
    assert!(matches!(admit(&admission, 1), Err(Refusal::ContextQueueFull { waiting: 2, .. })));
    let second = superseding(entrant(1), &two);
    assert_eq!(told(&mut told_one), Some(InterruptReason::Superseded));
    assert!(told(&mut told_two).is_none());
    let number = QueuePosition::Waiting;
    assert_eq!([&second, &waiting[0], &waiting[1]].map(position), [1, 2, 3].map(number));
    // It goes before one that waits to supersede, and stops that one, too.
    let third = superseding(entrant(1), &three);
    assert_eq!(told(&mut told_two), Some(InterruptReason::Superseded));
    assert!(told(&mut told_three).is_none());
    assert_eq!([&third, &second, &waiting[0], &waiting[1]].map(position), [1, 2, 3, 4].map(number));
    // The thread's turn is stopped whoever names it, and whoever waits for another thread is not.
    let elsewhere = superseding(entrant(2), &other);
    assert_eq!(position(&elsewhere), QueuePosition::Running);
    let (four, _mailbox) = turn();
    let named = Entrant { thread: Some(thread(7)), follows_context: false, ..entrant(3) };
    let fourth = superseding(named, &four);
    assert_eq!(told(&mut told_one), Some(InterruptReason::Superseded));
    assert!(told(&mut told_other).is_none());
    drop(second);
    drop(running);
    // It was the last to ask for the thread; the context's own goes on beside it with another.
    assert_eq!(position(&fourth), QueuePosition::Running);
    assert_eq!(position(&third), QueuePosition::Running);
    assert_eq!(waiting.each_ref().map(position), [1, 2].map(number));
}

#[test]
fn one_caller_leaves_room_for_others_and_callers_take_turns() {
    let limits = AdmissionLimits {
        max_waiting_turns: 64,
        max_running_turns: 1,
        ..AdmissionLimits::default()
    };
    let admission = Admission::new(limits);
    let come = |caller, name| {
        take_in(&admission, || Ok(Entrant { caller: CallerId(caller), ..entrant(name) }))
    };
    let running = come(1, 0).unwrap();
    let mut flood: Vec<Ticket> = Vec::new();
    let refused = (1..5000).filter_map(|name| match come(1, name) {
        Ok(ticket) => {
            flood.push(ticket);
            None
        }
        Err(refusal) => Some(refusal),
    });
    let refused: Vec<Refusal> = refused.collect();
    assert_eq!(flood.len(), 56);
    assert!(
        refused
            .iter()
            .all(|refusal| matches!(refusal, Refusal::QueueShareFull { waiting: 56, .. })),
        "{:?}",
        refused.first()
    );
    let others = [come(2, 5000).unwrap(), come(3, 5001).unwrap(), come(2, 5002).unwrap()];
    let waiting = QueuePosition::Waiting;
    assert_eq!([&others[0], &others[1], &others[2]].map(position), [2, 3, 5].map(waiting));
    drop(running);
    assert_eq!(position(&flood[0]), QueuePosition::Running);
    drop(flood.remove(0));
    assert_eq!(position(&others[0]), QueuePosition::Running);
    assert_eq!(position(&flood[0]), waiting(2));
}

#[test]
fn what_waits_holds_only_so_many_bytes_and_one_caller_leaves_some_to_others() {
    let admission =
        Admission::new(AdmissionLimits { max_running_turns: 1, ..AdmissionLimits::default() });
    let come = |caller, name| {
        let bytes = 8 << 20;
        take_in(&admission, || Ok(Entrant { caller: CallerId(caller), bytes, ..entrant(name) }))
    };
    let running = come(1, 0).unwrap();
    let mut waiting: Vec<Ticket> = (1..=28).map(|name| come(1, name).unwrap()).collect();
    let full = come(1, 29).unwrap_err();
    assert!(matches!(full, Refusal::QueueTooLarge { bytes, .. } if bytes == 28 * (8 << 20)));
    waiting.extend((30..33).map(|name| come(2, name).unwrap()));
    assert!(matches!(come(2, 33), Err(Refusal::QueueTooLarge { .. })));
    waiting.push(take_in(&admission, || Ok(entrant(34))).unwrap());
    drop(running);
    drop(waiting);
    assert_eq!(admission.state().waiting, Waiting::default());
    // One that runs at once does not wait.
    take_in(&admission, || Ok(Entrant { bytes: 1 << 30, ..entrant(35) })).unwrap();
}

#[test]
fn nobody_is_admitted_between_a_turns_last_deed_and_its_leave() {
    let admission = Admission::new(LIMITS);
    let (begins, begun) = std::sync::mpsc::channel();
    let ticket = admit(&admission, 1).unwrap();
    std::thread::scope(|scope| {
        let mut next = None;
        ticket.give_up(|| {
            let thread = scope.spawn(|| {
                begins.send(()).unwrap();
                position(&admit(&admission, 1).unwrap())
            });
            begun.recv().unwrap();
            // It has all the time that it needs, if nothing holds it up.
            (0..1000).for_each(|_| std::thread::yield_now());
            assert!(!thread.is_finished());
            next = Some(thread);
        });
        assert_eq!(next.unwrap().join().unwrap(), QueuePosition::Running);
    });
}

proptest! {
    #[test]
    fn lanes_of_contexts_and_threads_never_wait_for_each_other(
        steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_usize..20, 0_u8..6), 1..200)
    ) {
        let limits = AdmissionLimits { max_waiting_turns: 40, ..LIMITS };
        let admission = Admission::new(limits);
        let mut tickets: Vec<Ticket> = Vec::new();
        for (name, on, index, action) in steps {
            let caller = CallerId(index as u64 % 3);
            match action {
                0 => if !tickets.is_empty() { tickets.remove(index % tickets.len()); },
                1 => if let Some(ticket) = tickets.iter().find(|ticket| position(ticket) == QueuePosition::Running) {
                    ticket.note_thread(&thread(on));
                },
                2 => tickets.extend(take_in(&admission, || Ok(Entrant { caller, thread: Some(thread(on)), follows_context: false, ..entrant(name) })).ok()),
                3 => tickets.extend(take_in(&admission, || Ok(Entrant { caller, context: None, thread: Some(thread(on)), ..entrant(name) })).ok()),
                4 => tickets.extend(take_in(&admission, || Ok(Entrant { caller, thread: Some(thread(on)), policy: BusyPolicy::Interrupt, ..entrant(name) })).ok()),
                _ => tickets.extend(take_in(&admission, || Ok(Entrant { caller, ..entrant(name) })).ok()),
            }
            let state = admission.state();
            let mut in_line = state.line.order();
            in_line.sort_unstable();
            for (id, entry) in &state.tickets {
                let is_free = entry.lanes().all(|lane| state.lanes[lane].front() == Some(id));
                let stands = in_line.binary_search(id).is_ok();
                prop_assert_eq!(entry.stage == Stage::InLine, stands);
                // One that runs may have been given a thread that another one uses just now.
                if entry.stage != Stage::Running { prop_assert_eq!(is_free, stands); }
                for lane in entry.lanes() {
                    prop_assert_eq!(state.lanes[lane].iter().filter(|other| *other == id).count(), 1);
                }
            }
            // Work-conserving: nobody stands in line while there is room.
            prop_assert!(in_line.is_empty() || state.running == LIMITS.max_running_turns);
            let running = state.tickets.values().filter(|entry| entry.stage == Stage::Running).count();
            prop_assert_eq!(state.running, running);
            prop_assert_eq!(state.waiting.turns, tickets.len() - running);
            let of_callers = state.waiting_of.values().fold(Waiting::default(), |sum, one| {
                Waiting { turns: sum.turns + one.turns, bytes: sum.bytes + one.bytes }
            });
            prop_assert_eq!(of_callers, state.waiting);
        }
        // However they wait for each other, all of them get their turn.
        while !tickets.is_empty() {
            let before = tickets.len();
            let running: Vec<Ticket> = tickets.extract_if(.., |ticket| position(ticket) == QueuePosition::Running).collect();
            drop(running);
            prop_assert!(tickets.len() < before, "nobody runs, and {} wait", before);
        }
        let state = admission.state();
        prop_assert!(state.lanes.is_empty() && state.line.is_empty() && state.waiting_of.is_empty());
    }

    #[test]
    fn no_limit_is_passed_no_lane_runs_twice_and_nothing_is_left(
        steps in proptest::collection::vec((0_usize..4, any::<bool>(), 0_usize..20), 1..200)
    ) {
        let admission = Admission::new(LIMITS);
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        for (name, enters, index) in steps {
            if enters {
                if let Ok(ticket) = admit(&admission, name) { tickets.push((name, ticket)); }
            } else if !tickets.is_empty() {
                tickets.remove(index % tickets.len());
            }
            let running: Vec<usize> = tickets.iter()
                .filter(|(_, ticket)| position(ticket) == QueuePosition::Running).map(|(name, _)| *name).collect();
            let mut lanes = running.clone();
            lanes.sort_unstable();
            lanes.dedup();
            prop_assert_eq!(lanes.len(), running.len());
            prop_assert!(running.len() <= LIMITS.max_running_turns);
            prop_assert_eq!(admission.running(), running.len());
            prop_assert_eq!(admission.waiting(), tickets.len() - running.len());
            // Work-conserving: room is never left to a head of a lane that waits.
            let heads = tickets.iter().map(|(name, _)| name).collect::<std::collections::HashSet<_>>().len();
            prop_assert_eq!(running.len(), heads.min(LIMITS.max_running_turns));
            // Within a lane, those that came first are ahead.
            for lane in 0..4 {
                let positions: Vec<_> = tickets.iter().filter(|(name, _)| *name == lane)
                    .map(|(_, ticket)| position(ticket)).collect();
                for pair in positions.windows(2).skip(1) {
                    if let (QueuePosition::Waiting(before), QueuePosition::Waiting(after)) = (pair[0], pair[1]) {
                        prop_assert!(before < after);
                    }
                }
            }
        }
        tickets.clear();
        prop_assert_eq!((admission.running(), admission.waiting()), (0, 0));
        prop_assert!(admission.state().lanes.is_empty() && admission.state().running_of.is_empty());
    }
}
