//! Lines that become a ledger's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message as _;
use redb::StorageBackend;

use crate::model::id::ThreadId;
use crate::pb;
use crate::registry::ledger::disk::{Disk, FileDisk};
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::file::{self, FileFault, read};
use crate::registry::ledger::import::{ImportFault, ImportRules, Imported, import};
use crate::registry::ledger::lines::{Counts, Entry, LineWriter};
use crate::registry::ledger::tests::sample;
use crate::registry::ledger::writer::Pauses;
use crate::registry::ledger::{
    Change, Durability, KeptBinding, KeptEnd, KeptFacts, KeptTurn, Ledger,
};
use crate::registry::threads::ThreadFacts;

const AS_IT_IS: ImportRules = ImportRules { replace: false, partial: false };
const REPLACE: ImportRules = ImportRules { replace: true, partial: false };
const PARTIAL: ImportRules = ImportRules { replace: false, partial: true };

fn context(number: u64) -> Entry {
    let (key, binding) = (sample::context(number), sample::binding(number));
    Entry::Context(Box::new(KeptBinding { key, binding }))
}

fn turn(number: u64) -> KeptTurn {
    let mut turn = sample::started(number);
    turn.requests = vec![sample::request(number)];
    let (turn_id, mut started) = (turn.turn_id.0.clone(), sample::thread_started(number));
    let told = pb::ThreadStarted { thread_id: started.thread_id.to_string(), origin: 1 };
    let event = pb::TurnEvent {
        sequence: started.sequence,
        emitted_at: Some(prost_types::Timestamp::default()),
        turn_id,
        event: Some(pb::turn_event::Event::ThreadStarted(told)),
    };
    started.event = event.encode_to_vec().into();
    turn.thread_started = Some(started);
    if number.is_multiple_of(2) {
        turn.end = ended(&turn);
    }
    turn
}

/// How it might have ended.
fn ended(turn: &KeptTurn) -> Option<KeptEnd> {
    let end = sample::end(turn.thread_started.as_ref()?.sequence + 1, 0);
    let (turn_id, emitted_at) = (turn.turn_id.0.clone(), Some(prost_types::Timestamp::default()));
    let completed = pb::turn_event::Event::TurnCompleted(pb::TurnCompleted::default());
    let event =
        pb::TurnEvent { sequence: end.sequence, emitted_at, turn_id, event: Some(completed) };
    Some(KeptEnd { event: event.encode_to_vec().into(), ..end })
}

fn facts(number: u64) -> Entry {
    let (facts, at) = (sample::facts(number), sample::latest(number).at);
    Entry::Thread(sample::thread(number), KeptFacts { facts, at })
}

/// Some of all, in the order of the keys.
fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = (0..4).map(context).collect();
    entries.extend((4..6).map(|number| Entry::EvictedContext(sample::mark(number, number))));
    // Those whose ids are UUIDs come first.
    entries.extend([1, 2, 4, 5, 3].map(|number| Entry::Turn(Box::new(turn(number)))));
    entries.extend([1, 2, 3].map(facts));
    entries.extend(
        [0, 1]
            .map(|number| Entry::Directory(format!("/d/{number}").into(), sample::latest(number))),
    );
    entries.push(Entry::Tokens(sample::tokens(1)));
    entries
}

fn counts(entries: &[Entry]) -> Counts {
    let mut counts = Counts::default();
    for entry in entries {
        counts.count(entry);
    }
    counts
}

fn lines(entries: &[Entry]) -> Vec<u8> {
    let mut writer = LineWriter::new(Vec::new()).unwrap();
    for entry in entries {
        writer.entry(entry.clone()).unwrap();
    }
    writer.end(false).unwrap().0
}

fn all_of(path: &Path) -> Vec<Entry> {
    let (entries, salvaged) = read(path).unwrap();
    assert_eq!(salvaged, None);
    entries
}

#[test]
fn an_import_makes_the_same_state_and_a_second_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    let entries = entries();
    let lines = lines(&entries);
    let done = import(&path, &lines[..], AS_IT_IS).unwrap();
    assert_eq!(done, Imported { added: counts(&entries), ..Imported::default() });
    assert_eq!(all_of(&path), entries);
    for rules in [AS_IT_IS, REPLACE, PARTIAL] {
        let done = import(&path, &lines[..], rules).unwrap();
        assert_eq!(done, Imported { kept: counts(&entries), ..Imported::default() });
        assert_eq!(all_of(&path), entries);
    }
    // What was taken out can be put in.
    let mut exported = Vec::new();
    file::export(&path, &mut exported).unwrap();
    let other = directory.path().join("other.redb");
    import(&other, &exported[..], AS_IT_IS).unwrap();
    assert_eq!(all_of(&other), entries);
}

#[test]
fn what_is_newer_stays_unless_the_import_is_to_win() {
    let directory = tempfile::tempdir().unwrap();
    let older = entries();
    let newer: Vec<Entry> = entries()
        .into_iter()
        .map(|mut entry| {
            let later = Duration::from_secs(1);
            match &mut entry {
                Entry::Context(kept) => {
                    kept.binding.turns += 1;
                    kept.binding.updated_at += later;
                }
                Entry::EvictedContext(mark) => mark.evicted_at += later,
                // Less is known of it: turns were taken back.
                Entry::Thread(_, kept) => {
                    kept.at += later;
                    kept.facts = ThreadFacts { is_blank: true, ..ThreadFacts::default() };
                }
                // The one without an end has got one.
                Entry::Turn(kept) => {
                    kept.end = kept.end.clone().or_else(|| ended(kept));
                }
                Entry::Directory(_, latest) => latest.at += later,
                Entry::Tokens(kept) => kept.tokens += 1,
            }
            entry
        })
        .collect();
    let path = directory.path().join("sidecar.redb");
    import(&path, &lines(&older)[..], AS_IT_IS).unwrap();
    let done = import(&path, &lines(&newer)[..], AS_IT_IS).unwrap();
    // The turns that had an end.
    let had_ends = Counts { turns: 2, ..Counts::default() };
    assert_eq!((done.kept, done.added), (had_ends, Counts::default()));
    assert_eq!(all_of(&path), newer);
    let done = import(&path, &lines(&older)[..], AS_IT_IS).unwrap();
    assert_eq!(done.kept, counts(&older));
    assert_eq!(all_of(&path), newer);
    import(&path, &lines(&older)[..], REPLACE).unwrap();
    assert_eq!(all_of(&path), older);
}

#[test]
fn what_is_another_s_is_told_and_nothing_is_written_unless_the_import_is_to_win() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    let has = [context(1), Entry::Turn(Box::new(turn(2)))];
    import(&path, &lines(&has)[..], AS_IT_IS).unwrap();
    let (mut bound, mut claims) = (context(1), turn(5));
    if let Entry::Context(kept) = &mut bound {
        kept.binding.thread_id = ThreadId::from_codex("another");
    }
    claims.requests = vec![sample::request(2), sample::request(77)];
    let import_of = [context(0), bound.clone(), Entry::Turn(Box::new(claims.clone()))];
    let refused = import(&path, &lines(&import_of)[..], PARTIAL).unwrap_err();
    let ImportFault::Conflicts(conflicts, 2) = &refused else { panic!("{refused:?}") };
    let [one, other] = &conflicts[..] else { panic!("{conflicts:?}") };
    let bound_to = sample::thread(1);
    for part in ["\"context 1\"", "\"codex_thread_id\"", bound_to.as_str(), "another"] {
        assert!(one.contains(part), "{part}: {one}");
    }
    for part in ["\"request-2\"", &turn(2).turn_id.0, &turn(5).turn_id.0] {
        assert!(other.contains(part), "{part}: {other}");
    }
    assert_eq!(all_of(&path), has);

    let done = import(&path, &lines(&import_of)[..], REPLACE).unwrap();
    assert_eq!((done.added.total(), done.replaced.total(), done.kept.total()), (1, 2, 0));
    // A request is one turn's.
    let mut without = turn(2);
    without.requests.clear();
    let turns = [without, claims].map(|turn| Entry::Turn(Box::new(turn)));
    assert_eq!(all_of(&path), [&[context(0), bound][..], &turns].concat());
}

#[test]
fn a_mark_never_unbinds_what_is_bound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    import(&path, &lines(&[context(1)])[..], AS_IT_IS).unwrap();
    let mark = [Entry::EvictedContext(sample::mark(1, 9_000_000))];
    for rules in [AS_IT_IS, REPLACE] {
        let done = import(&path, &lines(&mark)[..], rules).unwrap();
        assert_eq!(done.kept, counts(&mark));
        assert_eq!(all_of(&path), [context(1)]);
    }
}

#[test]
fn of_lines_that_are_not_whole_nothing_is_taken_or_what_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let [path, new] = ["sidecar.redb", "new.redb"].map(|name| directory.path().join(name));
    import(&path, &lines(&[context(9)])[..], AS_IT_IS).unwrap();
    let whole = lines(&entries());
    for at in (0..whole.len() - 1).step_by(211) {
        for path in [&path, &new] {
            let refused = import(path, &whole[..at], AS_IT_IS).unwrap_err();
            assert!(matches!(refused, ImportFault::Lines(_)), "cut at {at}: {refused:?}");
        }
        assert_eq!(all_of(&path), [context(9)], "cut at {at}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(left.len(), 1, "{left:?}");

    // Without its header and its end, and with one bad line.
    let text = String::from_utf8(whole).unwrap();
    let mut parts: Vec<&str> = text.lines().collect();
    parts.pop();
    parts.remove(0);
    parts[1] = "{}";
    let done = import(&new, parts.join("\n").as_bytes(), PARTIAL).unwrap();
    let mut taken = entries();
    taken.remove(1);
    assert_eq!((done.added, done.faults.len()), (counts(&taken), 3), "{:?}", done.faults);
    assert_eq!(all_of(&new), taken);
    // Where nothing is whole there is nothing to take.
    let nothing = import(&new, &b"{}\n"[..], PARTIAL).unwrap_err();
    assert!(matches!(nothing, ImportFault::Lines(_)), "{nothing:?}");
}

#[tokio::test]
async fn a_file_that_a_sidecar_has_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    let ledger = Ledger::in_file(path.clone(), Durability::Process);
    ledger.open(Box::new(|_| {})).await.unwrap();
    let refused = import(&path, &lines(&entries())[..], REPLACE).unwrap_err();
    assert_eq!(refused, ImportFault::File(FileFault::InUse));
    ledger.close().await;
    import(&path, &lines(&entries())[..], AS_IT_IS).unwrap();
}

/// A file on a disk that can be full.
#[derive(Debug)]
struct Filling {
    file: FileDisk,
    is_full: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FillingStorage(Box<dyn StorageBackend>, Arc<AtomicBool>);

fn room(is_full: &AtomicBool) -> io::Result<()> {
    if is_full.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
}

impl StorageBackend for FillingStorage {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        room(&self.1).and_then(|()| self.0.set_len(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        room(&self.1).and_then(|()| self.0.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        room(&self.1).and_then(|()| self.0.write(offset, data))
    }
}

impl Disk for Filling {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn attach(&mut self) -> Result<Box<dyn StorageBackend>, Fault> {
        Ok(Box::new(FillingStorage(self.file.attach()?, Arc::clone(&self.is_full))))
    }

    fn back_up(&self, version: u64) -> Result<(), Fault> {
        self.file.back_up(version)
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn probe(&self) -> io::Result<()> {
        room(&self.is_full)
    }
}

#[tokio::test]
async fn a_ledger_on_a_full_disk_is_exported_with_what_it_could_not_keep() {
    use futures::TryStreamExt as _;
    let directory = tempfile::tempdir().unwrap();
    let [path, other] = ["sidecar.redb", "other.redb"].map(|name| directory.path().join(name));
    let is_full = Arc::new(AtomicBool::new(false));
    let file = FileDisk::new(path, Durability::Process);
    let disk = Filling { file, is_full: Arc::clone(&is_full) };
    let ledger = Ledger::on(Box::new(disk), Durability::Process, Pauses::default());
    ledger.open(Box::new(|_| {})).await.unwrap();
    ledger
        .write([context(1), context(2)].into_iter().flat_map(Entry::into_changes).collect())
        .await
        .unwrap();
    is_full.store(true, Ordering::SeqCst);
    let unkept = vec![Change::Unbind(sample::context(1)), Change::Mark(sample::mark(5, 5))];
    assert!(ledger.write(unkept).await.is_err());
    let parts = ledger.export().await.unwrap().unwrap();
    let parts: Vec<bytes::Bytes> = parts.try_collect().await.unwrap();
    import(&other, &parts.concat()[..], AS_IT_IS).unwrap();
    assert_eq!(all_of(&other), [context(2), Entry::EvictedContext(sample::mark(5, 5))]);
    is_full.store(false, Ordering::SeqCst);
    ledger.close().await;
}

#[tokio::test]
async fn what_a_running_ledger_exports_is_its_state_at_one_moment() {
    use futures::TryStreamExt as _;
    let directory = tempfile::tempdir().unwrap();
    let [path, other] = ["sidecar.redb", "other.redb"].map(|name| directory.path().join(name));
    let ledger = Ledger::in_file(path, Durability::Process);
    // It can't be read before it is.
    assert!(ledger.export().await.is_err());
    ledger.open(Box::new(|_| {})).await.unwrap();
    for entry in entries() {
        ledger.write(entry.into_changes()).await.unwrap();
    }
    let parts = ledger.export().await.unwrap().unwrap();
    // After the moment.
    ledger.write(context(3_000).into_changes()).await.unwrap();
    let parts: Vec<bytes::Bytes> = parts.try_collect().await.unwrap();
    import(&other, &parts.concat()[..], AS_IT_IS).unwrap();
    // When the facts were told is the ledger's to say.
    let mut exported = all_of(&other);
    for (exported, entry) in exported.iter_mut().zip(entries()) {
        let (Entry::Thread(_, kept), Entry::Thread(_, of)) = (exported, entry) else { continue };
        assert!(kept.at > of.at);
        kept.at = of.at;
    }
    assert_eq!(exported, entries());
    ledger.close().await;
    assert!(Ledger::memory().export().await.unwrap().is_none());
}
