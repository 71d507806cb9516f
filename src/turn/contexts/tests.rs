use std::task::Poll;
use std::thread;

use super::*;
use crate::registry::bindings::Bound;
use crate::turn::admission::{AdmissionLimits, QueuePosition};

fn key() -> ContextKey {
    ContextKey {
        tenant: Tenant::default(),
        context_id: "c".to_owned(),
        thread_key: "codex_thread_id".to_owned(),
    }
}

fn contexts() -> Contexts {
    limited(ContextLimits::default())
}

fn limited(limits: ContextLimits) -> Contexts {
    let admission = Admission::new(AdmissionLimits::default());
    Contexts::new(Arc::new(Ledger::memory()), admission, limits)
}

async fn bind(
    contexts: &Contexts,
    key: &ContextKey,
    thread_id: &ThreadId,
) -> Result<Bound, Refusal> {
    let reserved = contexts.reserve_to_bind(key, thread_id).await?;
    contexts.bind(key, thread_id, None, &reserved).await
}

async fn unbind(contexts: &Contexts, key: &ContextKey) -> Result<ThreadId, Refusal> {
    let (reserved, bound) = contexts.reserve_to_unbind(key).await?;
    contexts.unbind(key, &reserved).await?;
    Ok(bound.thread_id)
}

fn admit(contexts: &Contexts) -> Ticket {
    let request = TurnRequest { context: Some(key()), ..TurnRequest::default() };
    contexts.admit(&request, &Weak::new(), || ()).unwrap()
}

#[tokio::test]
async fn a_binding_changes_by_hand_only_while_no_turn_runs_or_waits() {
    let contexts = contexts();
    let (key, one, two) = (key(), ThreadId::from_codex("1"), ThreadId::from_codex("2"));
    let not_found = Refusal::ContextNotFound(key.clone());
    assert_eq!(unbind(&contexts, &key).await, Err(not_found.clone()));
    assert_eq!(bind(&contexts, &key, &one).await.unwrap().replaced, None);

    let running = admit(&contexts);
    let waiting = admit(&contexts);
    let in_use = Refusal::ContextInUse(key.clone());
    assert_eq!(bind(&contexts, &key, &two).await.unwrap_err(), in_use);
    drop(running);
    // The other one runs now.
    assert_eq!(unbind(&contexts, &key).await.unwrap_err(), in_use);
    contexts.bind_for_turn(Some(&key), &waiting, &two, &ThreadFacts::default());
    let another = ContextKey { context_id: "d".to_owned(), ..key.clone() };
    assert_eq!(bind(&contexts, &another, &two).await.unwrap().replaced, None);
    drop(waiting);
    assert_eq!(bind(&contexts, &key, &one).await.unwrap().replaced, Some(two));
    assert_eq!(unbind(&contexts, &key).await.unwrap(), one);
    assert_eq!(contexts.get(&key).unwrap_err(), not_found);
}

#[tokio::test(start_paused = true)]
async fn no_turn_runs_between_the_look_and_the_change_and_the_next_one_sees_it() {
    let (contexts, key, thread_id) = (contexts(), key(), ThreadId::from_codex("1"));
    let reserved = contexts.reserve_to_bind(&key, &thread_id).await.unwrap();
    let turn = admit(&contexts);
    let waits = || *turn.position().borrow() == QueuePosition::Waiting(1);
    assert!(waits());
    // Nor anybody else who is to change it.
    let mut other = Box::pin(contexts.reserve_to_unbind(&key));
    assert_eq!(
        futures::poll!(&mut other).map(|reserved| reserved.err()),
        Poll::Ready(Some(Refusal::ContextInUse(key.clone())))
    );
    contexts.bind(&key, &thread_id, None, &reserved).await.unwrap();
    assert!(waits());
    drop(reserved);
    assert_eq!(*turn.position().borrow(), QueuePosition::Running);
    assert_eq!(contexts.get(&key).unwrap().thread_id, thread_id);
    assert_eq!(unbind(&contexts, &key).await, Err(Refusal::ContextInUse(key.clone())));
}

#[test]
fn of_two_turns_on_a_new_context_exactly_one_is_the_first() {
    for _ in 0..500 {
        let contexts = contexts();
        let first = TurnRequest {
            context: Some(key()),
            context_policy: ContextPolicy::MustBeNew,
            ..TurnRequest::default()
        };
        let admitted = thread::scope(|scope| {
            let race =
                [(); 2].map(|()| scope.spawn(|| contexts.admit(&first, &Weak::new(), || ())));
            race.map(|one| one.join().unwrap())
        });
        let [one, two] = &admitted;
        assert_eq!(one.is_ok(), two.is_err(), "{admitted:?}");
        let refused = admitted.into_iter().find_map(Result::err).unwrap();
        assert_eq!(refused, Refusal::ContextExists(key()));
    }
}

#[tokio::test]
async fn a_turn_gets_the_context_that_it_asks_for_or_none() {
    let contexts = contexts();
    let (key, thread_id) = (key(), ThreadId::from_codex("1"));
    let asks = |context_policy, work: Work| {
        let request = TurnRequest {
            context: Some(key.clone()),
            context_policy,
            work,
            ..TurnRequest::default()
        };
        let checked = contexts.check(&request);
        let admitted = contexts.admit(&request, &Weak::new(), || ()).map(drop);
        assert_eq!(checked, admitted);
        admitted
    };
    let (missing, exists) =
        (Err(Refusal::ContextNotFound(key.clone())), Err(Refusal::ContextExists(key.clone())));
    use ContextPolicy::{Any, MustBeNew, MustExist};
    assert_eq!(asks(MustExist, Work::Inputs), missing);
    assert_eq!(asks(MustBeNew, Work::Inputs), Ok(()));
    assert_eq!(asks(Any, Work::Compact), missing);
    // A refusal holds no place.
    assert_eq!(asks(MustBeNew, Work::Inputs), Ok(()));
    // What is about to be bound is not there yet, and new no more.
    let running = admit(&contexts);
    assert_eq!(asks(MustExist, Work::Inputs), missing);
    assert_eq!(asks(MustBeNew, Work::Inputs), exists);
    contexts.bind_for_turn(Some(&key), &running, &thread_id, &ThreadFacts::default());
    drop(running);
    assert_eq!(asks(MustExist, Work::Inputs), Ok(()));
    assert_eq!(asks(MustBeNew, Work::Inputs), exists);
    assert_eq!(asks(Any, Work::Compact), Ok(()));
    unbind(&contexts, &key).await.unwrap();
    // The binding is looked at also where the thread is named.
    let named = TurnRequest {
        context: Some(key.clone()),
        explicit_thread: Some(thread_id),
        context_policy: MustExist,
        ..TurnRequest::default()
    };
    let admitted = contexts.admit(&named, &Weak::new(), || ()).map(drop);
    assert_eq!(admitted, missing);
}

#[tokio::test(start_paused = true)]
async fn a_context_beyond_the_most_is_refused_or_takes_the_place_of_the_one_unused_for_longest() {
    let thread = ThreadId::from_codex("1");
    let named = |name: &str| ContextKey { context_id: name.to_owned(), ..key() };
    let run = |contexts: &Contexts, name: &str| {
        let request = TurnRequest { context: Some(named(name)), ..TurnRequest::default() };
        contexts.admit(&request, &Weak::new(), || ())
    };
    let mut limits = ContextLimits { max_contexts: 2, ..ContextLimits::default() };
    let contexts = limited(limits.clone());
    let full = Refusal::ContextsFull { bound: 2, max_contexts: 2 };
    bind(&contexts, &named("a"), &thread).await.unwrap();
    // It counts before it is bound.
    let running = run(&contexts, "b").unwrap();
    assert_eq!(bind(&contexts, &named("c"), &thread).await.unwrap_err(), full);
    assert_eq!(run(&contexts, "c").unwrap_err(), full);
    // Those that are there go on.
    drop((run(&contexts, "a").unwrap(), run(&contexts, "b").unwrap()));
    drop(running);
    bind(&contexts, &named("c"), &thread).await.unwrap();
    unbind(&contexts, &named("a")).await.unwrap();
    bind(&contexts, &named("d"), &thread).await.unwrap();

    limits.evict_contexts = true;
    let contexts = limited(limits.clone());
    for name in ["a", "b"] {
        bind(&contexts, &named(name), &thread).await.unwrap();
    }
    let running = run(&contexts, "a").unwrap();
    // The only one that is idle, though used later.
    bind(&contexts, &named("c"), &thread).await.unwrap();
    assert!(contexts.get(&named("b")).is_err() && contexts.get(&named("a")).is_ok());
    let other = run(&contexts, "c").unwrap();
    assert_eq!(run(&contexts, "d").unwrap_err(), full, "all of them are busy");
    drop((running, other));
    assert!(contexts.eviction(&named("b")).is_some() && contexts.eviction(&named("a")).is_none());
    assert_eq!(contexts.evicted().len(), 1);

    limits.context_ttl = Some(Duration::from_secs(60));
    let contexts = limited(limits);
    bind(&contexts, &named("a"), &thread).await.unwrap();
    let running = run(&contexts, "a").unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    bind(&contexts, &named("b"), &thread).await.unwrap();
    contexts.sweep();
    assert_eq!(contexts.count(), 2);
    contexts.note_end(&named("a"));
    drop(running);
    tokio::time::advance(Duration::from_secs(59)).await;
    contexts.sweep();
    assert_eq!(contexts.count(), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    contexts.sweep();
    assert_eq!(contexts.count(), 0);
    assert!(contexts.eviction(&named("a")).is_some());
    tokio::time::advance(MARKED_FOR).await;
    contexts.sweep();
    assert!(contexts.eviction(&named("a")).is_none());
}

/// It was started again with a lower bound.
#[tokio::test(start_paused = true)]
async fn more_contexts_than_may_be_are_told_of_or_go_one_by_one() {
    let thread = ThreadId::from_codex("1");
    let named = |name: &str| ContextKey { context_id: name.to_owned(), ..key() };
    for evict_contexts in [false, true] {
        let contexts =
            limited(ContextLimits { max_contexts: 1, evict_contexts, context_ttl: None });
        let bindings = ["a", "b", "c"].map(|name| {
            let binding = contexts.bindings.plan(&named(name), &thread).binding;
            KeptBinding { key: named(name), binding }
        });
        bindings.into_iter().for_each(|kept| contexts.restore(kept));
        contexts.restored();
        let request = TurnRequest { context: Some(named("a")), ..TurnRequest::default() };
        let running = contexts.admit(&request, &Weak::new(), || ()).unwrap();
        contexts.sweep();
        if evict_contexts {
            assert!(contexts.count() == 1 && contexts.get(&named("a")).is_ok());
            assert!(
                contexts.eviction(&named("b")).is_some()
                    || contexts.eviction(&named("c")).is_some()
            );
        } else {
            assert_eq!(contexts.count(), 3);
            let refusal = bind(&contexts, &named("d"), &thread).await.unwrap_err();
            assert_eq!(refusal, Refusal::ContextsFull { bound: 3, max_contexts: 1 });
            let told = refusal.to_string();
            assert!(told.starts_with("3 contexts are bound") && told.contains("keeps 1"), "{told}");
        }
        drop(running);
    }
}
