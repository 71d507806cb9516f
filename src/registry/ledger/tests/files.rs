//! On files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sample::{self, Model, Restored};
use crate::registry::ledger::disk::FileDisk;
use crate::registry::ledger::writer::Pauses;
use crate::registry::ledger::{Change, Durability, Ledger, OpenError};

fn quick(path: &Path) -> Ledger {
    let pauses = Pauses {
        again: Duration::from_millis(5),
        in_use: Duration::from_millis(200),
        idle: Duration::from_millis(5),
    };
    let disk = FileDisk::new(path.to_owned(), Durability::Process);
    Ledger::on(Box::new(disk), Durability::Process, pauses)
}

async fn opened(path: &Path) -> (Ledger, Model) {
    let (ledger, restored) = (quick(path), Restored::default());
    ledger.open(restored.restore()).await.unwrap();
    assert_eq!(*ledger.trouble().borrow(), None);
    assert!(ledger.is_read());
    (ledger, restored.model())
}

struct Place {
    directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
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
