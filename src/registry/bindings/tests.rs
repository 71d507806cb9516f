use super::*;

fn key(context_id: &str, thread_key: &str) -> ContextKey {
    ContextKey {
        tenant: Tenant::default(),
        context_id: context_id.to_owned(),
        thread_key: thread_key.to_owned(),
    }
}

impl Bindings {
    /// The same of a thread of which nothing is known.
    fn bind_to(&self, key: &ContextKey, thread_id: &ThreadId) -> Bound {
        self.bind(key, thread_id, &ThreadFacts::default())
    }
}

#[test]
fn pages_are_complete_and_in_order_and_of_one_tenant() {
    let bindings = Bindings::default();
    let mut expected = Vec::new();
    for number in 0..25 {
        for thread_key in ["a", "b"] {
            let mine = key(&format!("c{number:02}"), thread_key);
            let anothers = ContextKey { tenant: Tenant("z".to_owned()), ..mine.clone() };
            for key in [&mine, &anothers] {
                bindings.bind_to(key, &ThreadId::from_codex(number.to_string()));
            }
            expected.push(mine);
        }
    }
    let mut after = None;
    let mut seen = Vec::new();
    loop {
        let page = bindings.page(&Tenant::default(), None, after.as_ref(), 9);
        let Some((last, _)) = page.last() else { break };
        after = Some((last.context_id.clone(), last.thread_key.clone()));
        seen.extend(page.into_iter().map(|(key, _)| key));
    }
    assert_eq!(seen, expected);
    assert!(bindings.page(&Tenant("other".to_owned()), None, None, 10).is_empty());
    assert_eq!(bindings.len(), 100);
}

#[test]
fn a_page_of_one_context_holds_nothing_else_wherever_it_begins() {
    let bindings = Bindings::default();
    for context_id in ["a", "b", "bb", "c"] {
        for thread_key in ["1", "2"] {
            bindings.bind_to(&key(context_id, thread_key), &ThreadId::from_codex("t"));
        }
    }
    let page = |after: Option<(&str, &str)>| -> Vec<ContextKey> {
        let after = after.map(|(context, thread)| (context.to_owned(), thread.to_owned()));
        let page = bindings.page(&Tenant::default(), Some("b"), after.as_ref(), 10);
        page.into_iter().map(|(key, _)| key).collect()
    };
    let both = [key("b", "1"), key("b", "2")];
    assert_eq!(page(None), both);
    assert_eq!(page(Some(("a", "2"))), both);
    assert_eq!(page(Some(("b", ""))), both);
    assert_eq!(page(Some(("b", "1"))), both[1..]);
    assert_eq!(page(Some(("b", "2"))), []);
    assert_eq!(page(Some(("c", "1"))), []);
}

#[test]
fn a_second_binding_tells_what_it_replaces_and_keeps_what_was_counted() {
    let bindings = Bindings::default();
    let key = key("c", "codex_thread_id");
    let (one, two) = (ThreadId::from_codex("1"), ThreadId::from_codex("2"));
    let turn = TurnId::generate();
    let first = bindings.bind_to(&key, &one);
    assert_eq!((first.replaced, first.binding.turns), (None, 0));
    bindings.note_turn(&key, &turn);
    assert_eq!(bindings.bind_to(&key, &one).replaced, None);
    let second = bindings.bind_to(&key, &two);
    assert_eq!(second.replaced, Some(one));
    assert_eq!(bindings.get(&key).as_ref(), Some(&second.binding));
    assert_eq!((second.binding.turns, second.binding.latest_turn.as_ref()), (1, Some(&turn)));
    assert_eq!(second.binding.created_at, first.binding.created_at);
    assert_eq!(bindings.remove(&key), Some(second.binding));
    assert_eq!(bindings.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_one_unused_for_longest_goes_first_and_leaves_a_mark_for_a_while() {
    let bindings = Bindings::default();
    let keys: Vec<ContextKey> = (0..4).map(|number| key(&number.to_string(), "k")).collect();
    for (number, key) in keys.iter().enumerate() {
        bindings.bind_to(key, &ThreadId::from_codex(number.to_string()));
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    bindings.note_use(&keys[0]);
    let unused = |at_least| bindings.unused_longest(|key| *key == keys[1], at_least);
    let evict = |at_least| unused(at_least).and_then(|key| bindings.evict(&key, 2));
    // The second is busy, and the others are used later than that.
    assert_eq!(evict(Duration::from_secs(3)), None);
    let evicted: Vec<_> = (0..4).map(|_| evict(Duration::ZERO)).collect();
    let id = |number: &str| Some(ThreadId::from_codex(number));
    assert_eq!(evicted, [id("2"), id("3"), id("0"), None]);
    let marks: Vec<_> = keys.iter().map(|key| bindings.mark(key).is_some()).collect();
    assert_eq!(marks, [true, false, false, true], "there is room for two");
    bindings.bind_to(&keys[3], &ThreadId::from_codex("3"));
    assert_eq!(bindings.mark(&keys[3]), None);
    assert_eq!(bindings.mark(&keys[0]).unwrap().thread_id, ThreadId::from_codex("0"));
    bindings.forget_marks(Duration::ZERO);
    let all = bindings.orders();
    assert_eq!((all.by_key.len(), all.by_use.len()), (2, 2));
    assert_eq!((all.marks.len(), all.marked.len()), (0, 0));
}

/// What an earlier process may have kept: ids as they are made, and any other text.
fn kept(number: u64, thread_id: &str, turn_id: Option<&str>) -> KeptBinding {
    let at = |seconds| SystemTime::now() - Duration::from_secs(3600) + Duration::from_secs(seconds);
    let binding = Binding {
        thread_id: ThreadId::from_codex(thread_id),
        created_at: at(number),
        updated_at: at(number + 1),
        turns: number,
        latest_turn: turn_id.map(|id| TurnId(id.to_owned())),
        is_fresh_copy: number % 2 == 1,
        copied_from: (number % 3 == 1).then(|| ThreadId::from_codex("another")),
        used_at: at(number + 2),
    };
    KeptBinding { key: key(&format!("c{number}"), "codex_thread_id"), binding }
}

const UUID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[test]
fn what_was_kept_is_as_it_was_whatever_its_ids_look_like() {
    let upper = UUID.to_uppercase();
    let ids = [UUID, &upper, "", "00000000-0000-0000-0000-000000000000", "a text of its own"];
    let bindings = Bindings::default();
    let mut all = Vec::new();
    for (number, id) in (0..).zip(ids) {
        let turns = [None, Some(id)];
        let kept = turns.map(|turn| kept(number, id, turn));
        // The second time it counts.
        kept.iter().for_each(|kept| bindings.restore(kept));
        let [_, last] = kept;
        assert_eq!(
            bindings.get(&last.key).unwrap(),
            last.binding,
            "also before the orders are there"
        );
        all.push(last);
    }
    bindings.restored();
    let page = bindings.page(&Tenant::default(), None, None, 100);
    let expected = all.iter().map(|kept| (kept.key.clone(), kept.binding.clone()));
    assert_eq!(page, expected.collect::<Vec<_>>());
    for (kept, id) in all.iter().zip(ids) {
        let thread_id = ThreadId::from_codex(id);
        assert!(bindings.has_thread(&thread_id));
        assert_eq!(bindings.other_of(&thread_id, &kept.key), None);
    }
    let copy = bindings.copy_of(&ThreadId::from_codex("another"));
    assert!(copy.is_some_and(|key| key == all[1].key || key == all[4].key));
    // The first is the one that was unused for longest, and whoever comes is used after all of them.
    bindings.bind_to(&all[0].key, &ThreadId::from_codex("new"));
    bindings.bind_to(&key("new", "k"), &ThreadId::from_codex("new"));
    let mut order = Vec::new();
    while let Some(key) = bindings.unused_longest(|_| false, Duration::ZERO) {
        bindings.evict(&key, 10);
        order.push(key.context_id);
    }
    assert_eq!(order, ["c1", "c2", "c3", "c4", "c0", "new"]);
}

#[tokio::test(start_paused = true)]
async fn ages_go_on_where_an_earlier_process_has_left_them() {
    let bindings = Bindings::default();
    // 3,600 seconds old, less its number and two.
    let old = kept(0, UUID, None);
    bindings.restore(&old);
    let mark = |ago| KeptMark {
        key: key("m", "k"),
        thread_id: ThreadId::from_codex(UUID),
        evicted_at: SystemTime::now() - Duration::from_secs(ago),
    };
    bindings.restore_mark(&mark(500));
    bindings.restore_mark(&mark(100));
    let unused = |seconds| bindings.unused_longest(|_| false, Duration::from_secs(seconds));
    assert_eq!((unused(3_590), unused(3_600)), (Some(old.key.clone()), None));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!((unused(3_650), unused(3_660)), (Some(old.key), None));
    let seconds = |mark: Mark| mark.age.as_secs();
    assert!((159..=160).contains(&bindings.mark(&key("m", "k")).map(seconds).unwrap()));
    bindings.forget_marks(Duration::from_secs(170));
    assert!(bindings.mark(&key("m", "k")).is_some());
    bindings.forget_marks(Duration::from_secs(159));
    assert_eq!(bindings.mark(&key("m", "k")), None);
}

#[test]
fn all_contexts_of_a_thread_are_found_and_no_others() {
    let bindings = Bindings::default();
    for (context, thread) in [("a", UUID), ("b", UUID), ("c", "x"), ("d", "y"), ("e", "x")] {
        bindings.bind_to(&key(context, "k"), &ThreadId::from_codex(thread));
    }
    let other = |thread, own| {
        bindings.other_of(&ThreadId::from_codex(thread), &key(own, "k")).map(|key| key.context_id)
    };
    assert_eq!(other(UUID, "a").as_deref(), Some("b"));
    assert_eq!(other("x", "c").as_deref(), Some("e"));
    assert_eq!(other("y", "d"), None);
    assert_eq!(other("z", "d"), None);
    bindings.bind_to(&key("b", "k"), &ThreadId::from_codex("y"));
    assert_eq!(other(UUID, "a"), None);
    assert_eq!(other("y", "d").as_deref(), Some("b"));
    bindings.remove(&key("a", "k"));
    assert!(!bindings.has_thread(&ThreadId::from_codex(UUID)));
}

#[test]
fn a_context_that_gets_another_thread_is_never_seen_without_one() {
    let bindings = Bindings::default();
    let key = key("c", "k");
    let threads = ["1", "2"].map(ThreadId::from_codex);
    bindings.bind_to(&key, &threads[0]);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            for number in 0..20_000 {
                bindings.bind_to(&key, &threads[number % 2]);
            }
        });
        while !changing.is_finished() {
            assert!(bindings.get(&key).is_some_and(|bound| threads.contains(&bound.thread_id)));
        }
    });
    assert_eq!((bindings.len(), bindings.entries.len()), (1, 1));
}

/// The clock of the machine was ahead once, by a year, and was set right.
#[tokio::test(start_paused = true)]
async fn a_use_in_the_future_keeps_no_context_for_ever() {
    let (hour, year) = (Duration::from_secs(3600), Duration::from_secs(365 * 24 * 3600));
    let bindings = Bindings::default();
    for (name, ahead) in [("a", 2 * year), ("b", year)] {
        let used_at = SystemTime::now() + ahead;
        let binding = Binding { used_at, ..Binding::first(&ThreadId::from_codex("t"), used_at) };
        bindings.restore(&KeptBinding { key: key(name, ""), binding });
        let (thread_id, evicted_at) = (ThreadId::from_codex("t"), used_at);
        bindings.restore_mark(&KeptMark { key: key("gone", ""), thread_id, evicted_at });
    }
    bindings.restored();
    bindings.bind_to(&key("c", ""), &ThreadId::from_codex("u"));
    let mut order = Vec::new();
    let unused = |known: &[ContextKey], at_least| {
        bindings.unused_longest(|context| known.contains(context), at_least)
    };
    assert_eq!(unused(&[], hour), None);
    tokio::time::advance(2 * hour).await;
    while let Some(context) = unused(&order, hour) {
        order.push(context);
    }
    assert_eq!(order, ["b", "a", "c"].map(|name| key(name, "")), "in the order of their uses");
    bindings.forget_marks(hour);
    assert_eq!(bindings.mark(&key("gone", "")), None);
}
