//! A disk that fails: an error, a write that is done in part, or the end of power, at any step.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use redb::StorageBackend;

use super::sample::{self, Model, Restored};
use crate::registry::ledger::disk::{Disk, Whereabouts};
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::writer::Pauses;
use crate::registry::ledger::{Change, Durability, Ledger, Written, open};

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// Nothing is done, as when there is no room.
    Refused,
    /// A write is done in part, and refused.
    Torn,
    /// The power goes: of what was not synced, some is there. Nothing can be done any more.
    Crash,
}

#[derive(Debug, Default)]
struct Bytes {
    /// As a process sees it.
    now: Vec<u8>,
    /// As it is after the end of power.
    durable: Vec<u8>,
    /// What was done since the last sync.
    unsynced: Vec<Step>,
    /// Writes, syncs and changes of length.
    steps: usize,
    syncs: usize,
    /// From this step on.
    event: Option<(usize, Event)>,
    /// How many steps fail; `None` for all.
    failures: Option<usize>,
    /// Whether a sync waits.
    is_held: bool,
    /// Who looks for it panics, once.
    panics: bool,
    /// Which of the unsynced steps outlive the end of power.
    luck: u64,
    is_off: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(at, data) => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        Step::SetLen(length) => bytes.resize(*length, 0),
    }
}

impl Bytes {
    fn step(&mut self, step: Option<Step>) -> io::Result<()> {
        if self.is_off {
            return Err(io::Error::other("there is no power"));
        }
        self.steps += 1;
        match self.event {
            Some((at, event)) if self.steps > at && self.failures != Some(0) => {
                if let Some(failures) = &mut self.failures {
                    *failures -= 1;
                }
                if event == Event::Crash {
                    self.crash();
                } else if let (Event::Torn, Some(Step::Write(at, data))) = (event, step) {
                    // Sectors are written whole.
                    let part = (data.len() / 2).next_multiple_of(512).min(data.len());
                    self.done(Step::Write(at, data[..part].to_vec()));
                }
                Err(io::Error::from_raw_os_error(28))
            }
            Some(_) | None => {
                match step {
                    Some(step) => self.done(step),
                    None => {
                        self.syncs += 1;
                        self.durable.clone_from(&self.now);
                        self.unsynced.clear();
                    }
                }
                Ok(())
            }
        }
    }

    fn done(&mut self, step: Step) {
        apply(&mut self.now, &step);
        self.unsynced.push(step);
    }

    fn crash(&mut self) {
        for (number, step) in std::mem::take(&mut self.unsynced).into_iter().enumerate() {
            let luck = self.luck.rotate_left(u32::try_from(number % 64).unwrap());
            let step = match step {
                step @ Step::SetLen(_) => step,
                // Written, not, or in part.
                Step::Write(at, data) => match luck % 4 {
                    0 => continue,
                    1 => Step::Write(
                        at,
                        data[..(data.len() / 2).next_multiple_of(512).min(data.len())].to_vec(),
                    ),
                    _ => Step::Write(at, data),
                },
            };
            apply(&mut self.durable, &step);
        }
        self.is_off = true;
    }
}

#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Bytes>>);

impl Memory {
    /// With an empty ledger in it.
    fn new() -> Memory {
        let memory = Memory::default();
        open::make(Box::new(memory.clone()), None).unwrap();
        memory.bytes().steps = 0;
        memory
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Bytes> {
        self.0.lock().unwrap()
    }

    /// What is there after the end of power, or after that of the process.
    fn after(&self, is_power: bool) -> Memory {
        let mut bytes = self.bytes();
        if is_power && !bytes.is_off {
            bytes.crash();
        }
        let image = if is_power { bytes.durable.clone() } else { bytes.now.clone() };
        let after = Bytes { now: image.clone(), durable: image, ..Bytes::default() };
        Memory(Arc::new(Mutex::new(after)))
    }

    fn fail(&self, at: usize, event: Event, failures: Option<usize>, luck: u64) {
        let mut bytes = self.bytes();
        (bytes.event, bytes.failures, bytes.luck) = (Some((at, event)), failures, luck);
    }

    /// A ledger on it, and what it has restored.
    async fn open(&self) -> (Ledger, Model) {
        self.open_with(Duration::from_secs(10)).await
    }

    async fn open_with(&self, hangs: Duration) -> (Ledger, Model) {
        let pauses = Pauses {
            again: Duration::from_millis(1),
            in_use: Duration::from_millis(1),
            smaller: Duration::from_secs(1),
            hangs,
        };
        let ledger = Ledger::on(Box::new(self.clone()), Durability::Power, pauses);
        let restored = Restored::default();
        ledger.open(restored.restore()).await.unwrap();
        (ledger, restored.model())
    }
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        if bytes.is_off {
            return Err(io::Error::other("there is no power"));
        }
        let offset = usize::try_from(offset).unwrap();
        let part = bytes.now.get(offset..offset + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes().step(Some(Step::SetLen(usize::try_from(len).unwrap())))
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.bytes().is_held {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.bytes().step(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes().step(Some(Step::Write(usize::try_from(offset).unwrap(), data.to_vec())))
    }
}

impl Disk for Memory {
    fn path(&self) -> &Path {
        Path::new("/disk")
    }

    fn attach(&mut self) -> Result<Box<dyn StorageBackend>, Fault> {
        Ok(Box::new(self.clone()))
    }

    fn back_up(&self, _: u64) -> Result<(), Fault> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.bytes().now.len() as u64
    }

    fn look(&mut self) -> Whereabouts {
        assert!(!std::mem::take(&mut self.bytes().panics), "a fault");
        Whereabouts::InPlace
    }
}

/// What is done in one call.
#[derive(Debug, Clone)]
enum Call {
    Write(Vec<Change>),
    /// With what undoes it.
    TryWrite(Vec<Change>, Vec<Change>),
}

/// Calls, where each that can be refused starts a turn which the others go on with, if it was started.
fn calls(numbers: &[u64]) -> Vec<Call> {
    let mut calls = Vec::new();
    for (at, number) in numbers.iter().copied().enumerate() {
        let (binding, at) = (sample::binding(number), at as u64);
        calls.push(match number % 9 {
            0 | 1 => Call::Write(vec![
                Change::Bind(sample::context(number), binding.clone()),
                Change::Facts(binding.thread_id, sample::facts(number)),
            ]),
            2 => Call::Write(vec![Change::Mark(sample::mark(number - 1, at))]),
            3 | 4 => Call::TryWrite(
                vec![Change::StartTurn(Box::new(sample::started(number)))],
                vec![Change::ForgetTurn(sample::turn(number))],
            ),
            5 => Call::Write(vec![
                Change::ThreadStarted(sample::turn(number - 1), sample::thread_started(at)),
                Change::Reserve(sample::turn(number - 1), at),
            ]),
            6 => Call::Write(vec![Change::EndTurn(
                sample::turn(number - 2),
                sample::end(at, usize::try_from(number * 100).unwrap()),
            )]),
            7 => Call::Write(vec![
                Change::ForgetTurn(sample::turn(number - 4)),
                Change::Unbind(sample::context(number - 7)),
            ]),
            _ => Call::Write(vec![Change::Directory(
                format!("/d/{}", number % 20).into(),
                sample::latest(at),
            )]),
        });
    }
    calls
}

fn call(ledger: &Ledger, call: &Call) -> Written {
    match call.clone() {
        Call::Write(changes) => ledger.write(changes),
        Call::TryWrite(changes, undo) => ledger.try_write(changes, undo),
    }
}

/// The calls as they count, where a call that was refused is what undoes it.
fn counted<'a>(calls: &'a [Call], were_kept: &[bool]) -> Vec<&'a [Change]> {
    let counted = calls.iter().zip(were_kept).map(|(call, was_kept)| match call {
        Call::Write(changes) => &changes[..],
        Call::TryWrite(changes, undo) => {
            if *was_kept {
                &changes[..]
            } else {
                &undo[..]
            }
        }
    });
    counted.collect()
}

fn model(calls: &[&[Change]]) -> Model {
    Model::of(calls.iter().copied().flatten())
}

fn without_facts(model: &Model) -> Model {
    Model { facts: BTreeMap::new(), ..model.as_opened() }
}

/// Does the calls, some at a time, and says which of them were told to be kept.
async fn run(ledger: &Ledger, calls: &[Call], at_once: usize) -> Vec<bool> {
    let mut were_kept = Vec::new();
    for calls in calls.chunks(at_once) {
        let written: Vec<_> = calls.iter().map(|one| call(ledger, one)).collect();
        for written in written {
            were_kept.push(written.await.is_ok());
        }
    }
    were_kept
}

/// What may be there after a crash: all that was told to be kept, and then of the calls that came after
/// it, in their order, none or more.
fn check_crash(found: &Model, calls: &[Call], were_kept: &[bool]) {
    let least = were_kept.iter().rposition(|was_kept| *was_kept).map_or(0, |last| last + 1);
    // Whether a call that was refused was on the disk when it went down, nobody can know.
    for last in least..=calls.len() {
        for is_undone in [false, true] {
            let mut were_kept = were_kept.to_vec();
            were_kept[least..last].fill(!is_undone);
            if *found == without_facts(&model(&counted(calls, &were_kept)[..last])) {
                return;
            }
        }
    }
    let expected = without_facts(&model(&counted(calls, were_kept)[..least]));
    assert_eq!(
        *found,
        expected,
        "nor with any of the {} calls that came after",
        calls.len() - least
    );
}

const NUMBERS: [u64; 24] =
    [3, 0, 4, 5, 1, 9, 10, 11, 6, 12, 13, 14, 20, 15, 8, 16, 18, 19, 22, 17, 23, 24, 7, 26];

#[tokio::test]
async fn after_the_end_of_power_at_every_step_all_is_there_that_was_told_to_be_kept() {
    let calls = calls(&NUMBERS);
    let memory = Memory::new();
    let (ledger, _) = memory.open().await;
    run(&ledger, &calls, 3).await;
    ledger.close().await;
    let steps = memory.bytes().steps;
    assert!(steps > 60, "{steps}");
    for step in 0..steps {
        for luck in [0, u64::MAX, 0x5eed_1234_9abc_def1] {
            let memory = Memory::new();
            memory.fail(step, Event::Crash, None, luck);
            let (ledger, _) = memory.open().await;
            let were_kept = run(&ledger, &calls, 3).await;
            ledger.close().await;
            let (again, found) = memory.after(true).open().await;
            check_crash(&found, &calls, &were_kept);
            again.close().await;
        }
    }
}

#[tokio::test]
async fn after_an_error_at_every_step_all_is_kept_that_was_not_refused() {
    let calls = calls(&NUMBERS);
    let memory = Memory::new();
    let (ledger, _) = memory.open().await;
    run(&ledger, &calls, 3).await;
    let steps = memory.bytes().steps;
    ledger.close().await;
    for step in 0..steps {
        for (event, failures) in [(Event::Refused, 1), (Event::Refused, 7), (Event::Torn, 2)] {
            let memory = Memory::new();
            memory.fail(step, event, Some(failures), 0);
            let (ledger, _) = memory.open().await;
            let were_kept = run(&ledger, &calls, 3).await;
            let mut trouble = ledger.trouble();
            trouble.wait_for(Option::is_none).await.unwrap();
            // The steps may not have been reached.
            memory.bytes().event = None;
            let expected = without_facts(&model(&counted(&calls, &were_kept)));
            let (again, found) = memory.after(true).open().await;
            assert_eq!(found, expected, "{event:?} {failures} times from step {step} on");
            again.close().await;
            ledger.close().await;
        }
    }
}

/// An event, from which step on, for how many steps, and which of the unsynced steps outlive it.
fn any_fault() -> impl Strategy<Value = (Event, usize, usize, u64)> {
    let event = prop_oneof![Just(Event::Refused), Just(Event::Torn), Just(Event::Crash)];
    (event, 0..400_usize, 1..30_usize, any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_disk_what_is_there_is_what_was_told(
        numbers in prop::collection::vec(9..60_u64, 1..80),
        at_once in 1..20_usize,
        (event, step, failures, luck) in any_fault(),
        is_power in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let calls = calls(&numbers);
            let memory = Memory::new();
            let (ledger, _) = memory.open().await;
            let step = memory.bytes().steps + step;
            memory.fail(step, event, Some(failures), luck);
            let were_kept = run(&ledger, &calls, at_once).await;
            let is_off = memory.bytes().is_off;
            let was_whole = ledger.trouble().borrow().is_none();
            // Between two commits nothing is under way: without trouble all is there that counts.
            let (again, found) = memory.after(is_off || is_power).open().await;
            check_crash(&found, &calls, &were_kept);
            if was_whole {
                assert_eq!(found, without_facts(&model(&counted(&calls, &were_kept))));
            }
            again.close().await;
            ledger.close().await;
        });
    }
}

#[tokio::test]
async fn what_waits_is_one_commit_with_one_sync_in_the_order_of_the_calls() {
    let memory = Memory::new();
    let (ledger, _) = memory.open().await;
    // So that the file need not grow.
    ledger.write(vec![Change::EndTurn(sample::turn(1), sample::end(1, 100_000))]).await.unwrap();
    ledger.write(vec![Change::ForgetTurn(sample::turn(1))]).await.unwrap();
    let before = memory.bytes().syncs;
    memory.bytes().is_held = true;
    let first = ledger.write(vec![Change::Bind(sample::context(0), sample::binding(0))]);
    let queue = &ledger.file.as_ref().unwrap().queue;
    while queue.waiting() > 0 {
        tokio::task::yield_now().await;
    }
    let bind = |number| vec![Change::Bind(sample::context(1), sample::binding(number))];
    let others: Vec<_> = (1..100).map(|number| ledger.write(bind(number))).collect();
    assert_eq!(queue.waiting(), 99);
    memory.bytes().is_held = false;
    for written in std::iter::once(first).chain(others) {
        written.await.unwrap();
    }
    assert_eq!(memory.bytes().syncs - before, 2);
    let (_again, found) = memory.after(true).open().await;
    assert_eq!(found.bindings[&sample::context(1)], sample::binding(99));
}

#[tokio::test]
async fn with_much_that_waits_no_turn_starts_and_those_that_run_are_kept() {
    let memory = Memory::new();
    let (ledger, _) = memory.open().await;
    memory.bytes().is_held = true;
    let large = |number| vec![Change::EndTurn(sample::turn(number), sample::end(number, 8 << 20))];
    let start = |number| vec![Change::StartTurn(Box::new(sample::started(number)))];
    let started = ledger.try_write(start(1), Vec::new());
    let ended: Vec<_> = (0..12).map(|_| ledger.write(large(1))).collect();
    assert!(ledger.try_write(start(2), Vec::new()).await.is_err());
    memory.bytes().is_held = false;
    for written in std::iter::once(started).chain(ended) {
        written.await.unwrap();
    }
    ledger.try_write(start(3), Vec::new()).await.unwrap();
    let (_again, found) = memory.after(true).open().await;
    assert_eq!(found.turns.len(), 2);
}

#[tokio::test]
async fn a_disk_that_hangs_is_trouble_until_it_answers_and_keeps_what_counts() {
    let memory = Memory::new();
    let (ledger, _) = memory.open_with(Duration::from_millis(50)).await;
    memory.bytes().is_held = true;
    let bind = |number| Change::Bind(sample::context(number), sample::binding(number));
    let start = |number| Change::StartTurn(Box::new(sample::started(number)));
    let forget = |number| Change::ForgetTurn(sample::turn(number));
    // One is being committed, the others wait.
    let held = ledger.try_write(vec![start(1), bind(1)], vec![forget(1)]);
    let others = [ledger.write(vec![bind(2)]), ledger.try_write(vec![start(3)], vec![forget(3)])];
    for written in std::iter::once(held).chain(others) {
        let cause = written.await.unwrap_err().cause;
        assert!(cause.starts_with("/disk: the disk has not answered for"), "{cause}");
    }
    assert!(ledger.trouble().borrow().is_some());
    memory.bytes().is_held = false;
    ledger.trouble().wait_for(Option::is_none).await.unwrap();
    ledger.write(vec![bind(4)]).await.unwrap();
    let (_again, found) = memory.after(true).open().await;
    assert!(found.turns.is_empty(), "what was refused is undone");
    assert_eq!(found.bindings.len(), 3, "{:?}", found.bindings);
}

#[tokio::test]
async fn a_panic_of_the_writer_is_trouble_that_goes_away_and_nobody_waits_for_ever() {
    let memory = Memory::new();
    let (ledger, _) = memory.open().await;
    let bind = |number| Change::Bind(sample::context(number), sample::binding(number));
    for number in 0..3 {
        memory.bytes().panics = true;
        // It may be the one that looks, or one that comes later.
        let written = ledger.write(vec![bind(number)]).await;
        assert!(written.is_ok() || ledger.trouble().borrow().is_some() || number == 0);
        ledger.trouble().wait_for(Option::is_none).await.unwrap();
    }
    ledger.write(vec![bind(4)]).await.unwrap();
    let (_again, found) = memory.after(true).open().await;
    assert_eq!(found.bindings.len(), 4);
}

#[tokio::test]
async fn a_panic_while_it_is_taken_in_refuses_the_ledger() {
    let memory = Memory::new();
    let (ledger, _) = memory.open().await;
    ledger.write(vec![Change::Bind(sample::context(1), sample::binding(1))]).await.unwrap();
    ledger.close().await;
    let ledger = Ledger::on(Box::new(memory), Durability::Power, Pauses::default());
    let refused = ledger.open(Box::new(|_| panic!("too large"))).await.unwrap_err();
    assert!(refused.to_string().contains("too large"), "{refused}");
    assert!(ledger.write(Vec::new()).await.is_err());
}
