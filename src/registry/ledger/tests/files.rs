//! On files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::ReadableDatabase as _;

use super::sample::{self, Model, Restored};
use crate::registry::ledger::disk::FileDisk;
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::open::{self, Versions};
use crate::registry::ledger::store::{META, VERSION_KEY};
use crate::registry::ledger::writer::Pauses;
use crate::registry::ledger::{Change, Durability, Ledger, OpenError};

pub(super) fn quick(path: &Path) -> Ledger {
    let pauses = Pauses {
        again: Duration::from_millis(5),
        in_use: Duration::from_millis(200),
        smaller: Duration::from_millis(5),
        hangs: Duration::from_secs(10),
    };
    let disk = FileDisk::new(path.to_owned(), Durability::Process);
    Ledger::on(Box::new(disk), Durability::Process, pauses)
}

pub(super) async fn opened(path: &Path) -> (Ledger, Model) {
    let (ledger, restored) = (quick(path), Restored::default());
    ledger.open(restored.restore()).await.unwrap();
    assert_eq!(*ledger.trouble().borrow(), None);
    assert!(ledger.is_read());
    (ledger, restored.model())
}

pub(super) struct Place {
    pub(super) directory: tempfile::TempDir,
    pub(super) path: PathBuf,
}

pub(super) fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.redb");
    Place { directory, path }
}

/// The file as it is now, as a process would leave it that is killed.
fn copy(place: &Place) -> PathBuf {
    let to = place.directory.path().join("copy.redb");
    std::fs::copy(&place.path, &to).unwrap();
    to
}

fn without_facts(model: &Model) -> Model {
    Model { facts: Default::default(), ..model.as_opened() }
}

#[tokio::test]
async fn what_was_kept_is_there_after_an_end_and_after_a_crash() {
    let place = place();
    let (ledger, before) = opened(&place.path).await;
    assert_eq!(before, Model::default());
    assert!(std::fs::metadata(&place.path).unwrap().len() < 1024 * 1024);
    assert_eq!(std::fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
    let changes = sample::some_of_all();
    let model = Model::of(&changes);
    for change in &changes {
        ledger.write(vec![change.clone()]).await.unwrap();
    }
    let crashed = copy(&place);
    ledger.close().await;
    assert!(ledger.write(vec![changes[0].clone()]).await.is_err());
    for path in [&crashed, &place.path] {
        let (ledger, kept) = opened(path).await;
        assert_eq!(kept, without_facts(&model));
        let model = model.as_opened();
        for number in 0..20 {
            let thread = sample::thread(number);
            assert_eq!(
                ledger.facts_of(&thread).await.unwrap().as_ref(),
                model.facts.get(&thread),
                "{number}"
            );
        }
        ledger.close().await;
    }
}

pub(super) async fn refused(path: &Path) -> OpenError {
    let ledger = quick(path);
    let refused = ledger.open(Restored::default().restore()).await.unwrap_err();
    assert!(!ledger.is_read());
    assert!(ledger.write(Vec::new()).await.is_err());
    ledger.close().await;
    refused
}

/// A file with something in it, closed well.
pub(super) async fn filled() -> (Place, Model) {
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    let changes = sample::some_of_all();
    ledger.write(changes.clone()).await.unwrap();
    ledger.close().await;
    (place, without_facts(&Model::of(&changes)))
}

#[tokio::test]
async fn a_second_one_is_refused_and_waits_for_one_that_ends() {
    let (place, model) = filled().await;
    let (first, _) = opened(&place.path).await;
    let in_use = OpenError::InUse { path: place.path.clone() };
    assert_eq!(refused(&place.path).await, in_use);
    first.write(Vec::new()).await.unwrap();
    let (second, ()) = tokio::join!(opened(&place.path), first.close());
    assert_eq!(second.1, model);
}

#[tokio::test]
async fn what_is_damaged_is_refused_and_left_as_it_is() {
    let (place, model) = filled().await;
    let whole = std::fs::read(&place.path).unwrap();
    let mut refusals = 0;
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&place.path, &damaged).unwrap();
        let (ledger, restored) = (quick(&place.path), Restored::default());
        match ledger.open(restored.restore()).await {
            // Where nothing is.
            Ok(()) => assert_eq!(restored.model(), model, "{at}"),
            Err(OpenError::Damaged { .. }) => {
                refusals += 1;
                assert!(std::fs::read(&place.path).unwrap() == damaged, "{at}");
            }
            Err(other) => panic!("{at}: {other:?}"),
        }
        ledger.close().await;
    }
    assert!(refusals > 20, "{refusals}");
    for content in [&whole[..whole.len() / 2], &whole[..100], b"x", b"{\"a\": 1}\n", b""] {
        std::fs::write(&place.path, content).unwrap();
        assert!(matches!(refused(&place.path).await, OpenError::Damaged { .. }));
        assert_eq!(std::fs::read(&place.path).unwrap(), content);
    }
    std::fs::remove_file(&place.path).unwrap();
    std::fs::create_dir(&place.path).unwrap();
    for path in [&place.path, Path::new("/dev/null")] {
        assert!(matches!(refused(path).await, OpenError::NotAFile { .. }), "{path:?}");
    }
}

#[tokio::test]
async fn what_a_newer_one_wrote_is_refused_and_left_as_it_is() {
    let (place, _) = filled().await;
    let whole = std::fs::read(&place.path).unwrap();
    let database = redb::Database::open(&place.path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(VERSION_KEY, 7).unwrap();
    transaction.commit().unwrap();
    drop(database);
    // The format of redb is said at the begin of both of its slots.
    let mut format = whole;
    (format[64], format[192]) = (4, 4);
    for (content, version) in [(std::fs::read(&place.path).unwrap(), 7), (format, 4)] {
        std::fs::write(&place.path, &content).unwrap();
        let too_new = OpenError::TooNew { path: place.path.clone(), version, newest: 1 };
        assert_eq!(refused(&place.path).await, too_new);
        assert!(std::fs::read(&place.path).unwrap() == content);
    }
}

#[tokio::test]
async fn a_file_that_was_being_made_at_a_crash_is_made_again() {
    let place = place();
    // As it is when the crash comes between the two first writes of redb.
    let new = place.directory.path().join("sidecar.redb.new");
    std::fs::write(&new, [0; 70_000]).unwrap();
    opened(&place.path).await.0.close().await;
    // And when it was being made anew.
    std::fs::write(&new, [0; 70_000]).unwrap();
    opened(&place.path).await.0.close().await;
    let names: Vec<_> = std::fs::read_dir(place.directory.path()).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test]
async fn a_directory_that_comes_later_is_trouble_until_then() {
    let place = place();
    let home = place.directory.path().join("home");
    let path = home.join("sidecar.redb");
    let ledger = quick(&path);
    let mut trouble = ledger.trouble();
    ledger.open(Restored::default().restore()).await.unwrap();
    let cause = trouble.wait_for(Option::is_some).await.unwrap().clone().unwrap().cause;
    assert!(cause.starts_with(path.to_str().unwrap()), "{cause}");
    assert!(!ledger.is_read());
    let change = Change::Bind(sample::context(1), sample::binding(1));
    assert!(ledger.write(vec![change.clone()]).await.is_err());
    let undone = Change::Bind(sample::context(2), sample::binding(2));
    assert!(ledger.try_write(vec![undone.clone()], vec![undone]).await.is_err());
    std::fs::create_dir(&home).unwrap();
    trouble.wait_for(Option::is_none).await.unwrap();
    assert!(ledger.is_read());
    ledger.close().await;
    assert_eq!(opened(&path).await.1, Model::of([&change]));
}

#[tokio::test]
async fn the_file_gets_smaller_when_what_is_in_it_goes() {
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    let start = |number| Change::StartTurn(Box::new(sample::started(number)));
    let end = |number| Change::EndTurn(sample::turn(number), sample::end(number, 500_000));
    let length = || std::fs::metadata(&place.path).unwrap().len();
    for number in 0..40 {
        ledger.write(vec![start(number), end(number)]).await.unwrap();
    }
    assert!(length() > 20_000_000);
    let forget = |number| Change::ForgetTurn(sample::turn(number));
    for number in 1..40 {
        ledger.write(vec![forget(number)]).await.unwrap();
    }
    let reader = ledger.snapshot().unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(*ledger.trouble().borrow(), None, "whoever reads does no harm");
    drop(reader);
    while length() > 8 << 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ledger.write(vec![start(50)]).await.unwrap();
    ledger.close().await;
    let expected = Model::of(&[start(0), end(0), start(50)]);
    assert_eq!(opened(&place.path).await.1, expected.as_opened());
}

#[tokio::test]
async fn the_file_gets_smaller_while_turns_run() {
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    let start = |number| Change::StartTurn(Box::new(sample::started(number)));
    let end = |number| Change::EndTurn(sample::turn(number), sample::end(number, 500_000));
    for number in 0..40 {
        ledger.write(vec![start(number), end(number)]).await.unwrap();
    }
    let length = || std::fs::metadata(&place.path).unwrap().len();
    assert!(length() > 20_000_000);
    for number in 0..39 {
        ledger.write(vec![Change::ForgetTurn(sample::turn(number))]).await.unwrap();
    }
    // With never a pause that is long enough to count as one.
    let begun = std::time::Instant::now();
    while length() > 8 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", length());
        ledger.write(vec![start(50)]).await.unwrap();
    }
}

#[tokio::test]
async fn whoever_still_reads_keeps_nobody_from_the_file() {
    let (place, model) = filled().await;
    let (ledger, _) = opened(&place.path).await;
    let snapshot = ledger.snapshot().unwrap().unwrap();
    ledger.close().await;
    assert_eq!(opened(&place.path).await.1, model);
    assert!(snapshot.records().is_err() || snapshot.records().unwrap().all(|read| read.is_ok()));
}

#[tokio::test]
async fn facts_are_read_as_they_were_told_before_they_are_on_the_disk() {
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    let thread = sample::thread(1);
    assert_eq!(ledger.facts_of(&thread).await.unwrap(), None);
    for number in 0..50 {
        drop(ledger.write(vec![Change::Facts(thread.clone(), sample::facts(number))]));
        assert_eq!(ledger.facts_of(&thread).await.unwrap(), Some(sample::facts(number)));
        drop(ledger.write(vec![Change::ForgetFacts(thread.clone())]));
        assert_eq!(ledger.facts_of(&thread).await.unwrap(), None);
    }
}

/// Each appends a number to what is said of the versions in the tables.
fn to_two(transaction: &redb::WriteTransaction) -> Result<(), Fault> {
    transaction.open_table(META)?.insert("two", 2)?;
    Ok(())
}

fn to_three(transaction: &redb::WriteTransaction) -> Result<(), Fault> {
    let two = transaction.open_table(META)?.remove("two")?.map(|two| two.value());
    transaction.open_table(META)?.insert("three", two.unwrap_or_default() + 1)?;
    Ok(())
}

fn fails(_: &redb::WriteTransaction) -> Result<(), Fault> {
    Err(Fault::System("no room".to_owned()))
}

#[tokio::test]
async fn an_older_one_is_brought_to_this_version_at_once_and_a_copy_is_kept() {
    let (place, model) = filled().await;
    let open =
        |versions| open::open(&mut FileDisk::new(place.path.clone(), Durability::Power), versions);
    let failing = Versions { oldest: 1, migrations: &[to_two, fails] };
    assert!(matches!(open(failing), Err(Fault::System(_))));
    // As before, with its two in nothing.
    assert!(open(Versions::THIS).is_ok());
    let opened_now = open(Versions { oldest: 1, migrations: &[to_two, to_three] }).unwrap();
    let database = opened_now.begin(None).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    let of = |key| meta.get(key).unwrap().map(|value| value.value());
    assert_eq!((of(VERSION_KEY), of("two"), of("three")), (Some(3), None, Some(3)));
    drop(database);
    assert!(matches!(open(Versions::THIS), Err(Fault::TooNew(3))));
    let copy = place.directory.path().join("sidecar.redb.v1.bak");
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(opened(&copy).await.1, model);
}
