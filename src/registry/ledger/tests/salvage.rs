//! Files that are damaged: told as that, never read as whole ones, and read as far as they can be.

use std::path::Path;

use crate::registry::ledger::file::{self, Checked, FileFault, read};
use crate::registry::ledger::lines::{Counts, Entry};
use crate::registry::ledger::tests::sample::{self, Model};
use crate::registry::ledger::{Change, Durability, KeptTurn, disk, open, record, store};

/// A ledger in which each of these groups was kept in a commit of its own, and the lock on its file.
fn write(path: &Path, groups: &[Vec<Change>]) -> (redb::Database, disk::FileDisk) {
    let mut disk = disk::FileDisk::new(path.to_owned(), Durability::Process);
    let opened = open::open(&mut disk, open::Versions::THIS).unwrap();
    let database = opened.begin(None).unwrap();
    for group in groups {
        let mut operations = Vec::new();
        for change in group {
            record::append_operations(change, &mut operations);
        }
        store::commit(&database, &operations).unwrap();
    }
    (database, disk)
}

fn groups() -> Vec<Vec<Change>> {
    let changes = sample::some_of_all();
    changes.chunks(9).map(<[Change]>::to_vec).collect()
}

/// What there is after each of the groups.
fn states(groups: &[Vec<Change>]) -> Vec<Model> {
    let all = (0..=groups.len()).map(|count| Model::of(groups[..count].concat().iter()));
    all.collect()
}

fn counts(model: &Model) -> Counts {
    let count = |number: usize| u64::try_from(number).unwrap();
    Counts {
        contexts: count(model.bindings.len()),
        evicted_contexts: count(model.marks.len()),
        threads: count(model.facts.len()),
        turns: count(model.turns.len()),
        directories: count(model.directories.len()),
        tokens: count(model.tokens.iter().len()),
    }
}

fn model(entries: Vec<Entry>) -> Model {
    let changes: Vec<Change> = entries.into_iter().flat_map(Entry::into_changes).collect();
    let mut model = Model::of(&changes);
    for turn in model.turns.values_mut() {
        turn.requests.sort_by(|one, other| one.id.cmp(&other.id));
    }
    model
}

fn sorted(mut model: Model) -> Model {
    for turn in model.turns.values_mut() {
        turn.requests.sort_by(|one, other| one.id.cmp(&other.id));
    }
    model
}

/// Whether this, or each part of it, was kept at some time.
fn was_written(entry: &Entry, changes: &[Change]) -> bool {
    changes.iter().any(|change| match (entry, change) {
        (Entry::Context(kept), Change::Bind(key, binding)) => {
            (&kept.key, &kept.binding) == (key, binding)
        }
        (Entry::EvictedContext(kept), Change::Mark(mark)) => kept == mark,
        (Entry::Thread(id, kept), Change::Facts(of, has)) => (id, &kept.facts) == (of, has),
        (Entry::Directory(path, latest), Change::Directory(of, has)) => (path, latest) == (of, has),
        (Entry::Tokens(tokens), Change::Tokens(has)) => tokens == has,
        (Entry::Turn(kept), Change::StartTurn(start)) => {
            let KeptTurn { turn_id, context, created_at, started_at, requests, .. } = &**kept;
            let has = |wanted: &Change| changes.contains(wanted);
            let id = || turn_id.clone();
            (turn_id, context, created_at, started_at)
                == (&start.turn_id, &start.context, &start.created_at, &start.started_at)
                && requests.iter().all(|request| {
                    start.requests.contains(request)
                        || has(&Change::JoinTurn(request.clone(), id()))
                })
                && (kept.thread_started.iter())
                    .all(|started| has(&Change::ThreadStarted(id(), started.clone())))
                && kept.end.iter().all(|end| has(&Change::EndTurn(id(), end.clone())))
                && (kept.reserved == start.reserved || has(&Change::Reserve(id(), kept.reserved)))
        }
        _ => false,
    })
}

#[test]
fn a_whole_file_is_read_without_being_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    assert_eq!(file::check(&path), Err(FileFault::Missing));
    let groups = groups();
    let expected = sorted(states(&groups).pop().unwrap());

    let database = write(&path, &groups);
    let in_use = [file::check(&path).unwrap_err(), read(&path).unwrap_err()];
    assert_eq!(in_use, [FileFault::InUse, FileFault::InUse]);
    // As a crash leaves it.
    let crashed = directory.path().join("crashed.redb");
    std::fs::copy(&path, &crashed).unwrap();
    drop(database);
    for path in [&path, &crashed] {
        let before = std::fs::read(path).unwrap();
        let checked = file::check(path).unwrap();
        let Checked { version, counts: counted, unended_turns, request_ids, bytes, written_at } =
            checked;
        let turns = expected.turns.values();
        let unended = turns.clone().filter(|turn| turn.end.is_none()).count();
        let requests: usize = turns.map(|turn| turn.requests.len()).sum();
        assert_eq!((version, counted), (open::Versions::THIS.newest(), counts(&expected)));
        assert_eq!((unended_turns, request_ids), (unended as u64, requests as u64));
        assert_eq!(bytes, before.len() as u64);
        assert!(written_at.is_some());
        let (entries, salvaged) = read(path).unwrap();
        assert_eq!((model(entries), salvaged), (expected.clone(), None));
        assert!(std::fs::read(path).unwrap() == before, "it was written to");
    }
}

/// Numbers that look like chance, and are the same each time.
fn chance(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    }
}

#[test]
fn of_a_damaged_file_nothing_is_read_that_was_never_written_and_nothing_is_lost_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let [clean, crashed, path] =
        ["clean.redb", "crashed.redb", "damaged.redb"].map(|name| directory.path().join(name));
    let groups = groups();
    let changes = groups.concat();
    let states: Vec<Model> = states(&groups).into_iter().map(sorted).collect();
    let database = write(&clean, &groups);
    std::fs::copy(&clean, &crashed).unwrap();
    drop(database);

    let mut next = chance(12);
    let (mut told, mut found) = (0, 0);
    for source in [&clean, &crashed] {
        let bytes = std::fs::read(source).unwrap();
        let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
        for case in 0..90 {
            let mut damaged = bytes.clone();
            let flips = if case % 3 == 0 { 40 } else { 1 };
            let mut what = "flipped at".to_owned();
            for _ in 0..flips {
                // One in three in what redb keeps for itself.
                let at = next(if case % 3 == 1 { 4096 } else { damaged.len() });
                damaged[at] ^= 1 << next(8);
                what = format!("{what} {at}");
            }
            cases.push((what, damaged));
        }
        // How many entries each page of a tree says it has.
        for page in (0..bytes.len()).step_by(4096).filter(|page| matches!(bytes[*page], 1 | 2)) {
            let mut damaged = bytes.clone();
            damaged[page + 2] ^= 1;
            cases.push((format!("another count in the page at {page}"), damaged));
        }
        for _ in 0..40 {
            let length = next(bytes.len());
            cases.push((format!("cut at {length}"), bytes[..length].to_vec()));
        }
        for pages in [1, 2, 5, 20] {
            let mut damaged = bytes.clone();
            let end = damaged.len().min(pages * 4096);
            damaged[..end].fill(0);
            cases.push((format!("without the first {pages} pages"), damaged));
        }
        for (what, damaged) in cases {
            std::fs::write(&path, damaged).unwrap();
            let (entries, salvaged) = match read(&path) {
                Ok(read) => read,
                Err(FileFault::Damaged(cause)) if cause.contains("empty") => continue,
                // A version that was never given.
                Err(FileFault::TooNew { .. }) => continue,
                Err(fault) => panic!("{what}: {fault:?}"),
            };
            let stranger = entries.iter().find(|entry| !was_written(entry, &changes));
            assert!(stranger.is_none(), "{what}: {stranger:?}");
            match salvaged {
                None => {
                    let now = model(entries);
                    // Of a file that was not closed, redb takes the last commit whose pages are whole.
                    let may_be = if source == &clean { states.len() - 1 } else { states.len() - 2 };
                    assert!(states[may_be..].contains(&now), "{what}: read as whole");
                    assert!(file::check(&path).is_ok(), "{what}");
                }
                Some(salvaged) => {
                    told += 1;
                    found += u64::from(salvaged.records > 0);
                    assert!(matches!(file::check(&path), Err(FileFault::Damaged(_))), "{what}");
                    assert_eq!(file::look_into(&path), Ok(salvaged), "{what}");
                }
            }
        }
    }
    assert!(told > 80 && found > 60, "{told} were damaged, of {found} something was read");
}

#[test]
fn the_newest_of_each_record_is_found_without_any_table() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    let mut groups = Vec::new();
    for round in 0..20 {
        let mut group = Vec::new();
        for number in 0..40 {
            let mut binding = sample::binding(number);
            binding.turns = round;
            binding.updated_at += std::time::Duration::from_secs(round);
            binding.used_at = binding.updated_at;
            group.push(Change::Bind(sample::context(number), binding));
            // What is known of a thread can become less.
            let mut facts = sample::facts(number);
            facts.turns.get_or_insert_default().count = usize::try_from(20 - round).unwrap();
            group.push(Change::Facts(sample::thread(number), facts));
        }
        groups.push(group);
    }
    drop(write(&path, &groups));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..512].fill(0xAA);
    std::fs::write(&path, bytes).unwrap();
    let (entries, salvaged) = read(&path).unwrap();
    assert!(salvaged.unwrap().records > 40, "older ones are there, too: {salvaged:?}");
    let expected = Model::of(groups.last().unwrap());
    assert_eq!(model(entries), sorted(expected));
}

#[test]
fn a_record_is_found_wherever_it_lies() {
    // Across what is looked at together, longer than that, and one after the other.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scanned");
    let window = 1 << 20;
    let frame = |number: u64, bytes: usize| {
        let mut operations = Vec::new();
        let change = Change::EndTurn(sample::turn(number), sample::end(number, bytes));
        record::append_operations(&change, &mut operations);
        let [record::Operation::Put { value, .. }] = &operations[..] else { panic!() };
        value.clone()
    };
    for (before, size) in [
        (0, 10),
        (1, 10),
        (window - 1, 10),
        (window - 2, 10),
        (window - 11, 10),
        (window - 12, 10),
        (window - 13, 10),
        (window, 10),
        (window / 2, window),
        (window - 5, 3 * window),
        (2 * window + 7, 3 * window),
    ] {
        // What looks like the beginning of one, of every length, must not hide it.
        let mut bytes = vec![0; before];
        let fake = super::super::frame::MAGIC;
        let count = (before / fake.len()).min(100);
        for at in 0..count {
            bytes[at * 3..at * 3 + 3].copy_from_slice(&fake);
        }
        bytes.extend(frame(1, size));
        bytes.extend(frame(2, 7));
        std::fs::write(&path, &bytes).unwrap();
        let salvaged = file::look_into(&path).unwrap();
        assert_eq!(salvaged.records, 2, "{size} bytes behind {before}");
    }
}
