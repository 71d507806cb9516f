//! What is done to the file's name while it is open, and what is not what a file's name is to be.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::files::{filled, opened, place, quick, refused};
use super::sample::{self, Model, Restored};
use crate::registry::ledger::{Change, Ledger, OpenError};

fn bind(number: u64) -> Change {
    Change::Bind(sample::context(number), sample::binding(number))
}

/// The trouble, once there is some.
async fn trouble(ledger: &Ledger) -> String {
    ledger.trouble().wait_for(Option::is_some).await.unwrap().clone().unwrap().cause
}

async fn goes_on(ledger: &Ledger) {
    ledger.trouble().wait_for(Option::is_none).await.unwrap();
}

async fn wait_for(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_file_that_is_removed_or_moved_away_is_there_again_with_all_of_it() {
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    ledger.write(vec![bind(1)]).await.unwrap();
    std::fs::remove_file(&place.path).unwrap();
    // Told to be kept before or after it was removed.
    ledger.write(vec![bind(2)]).await.unwrap();
    assert!(place.path.exists());
    let moved = place.directory.path().join("moved");
    std::fs::rename(&place.path, &moved).unwrap();
    // Also while nothing is written.
    wait_for(&place.path).await;
    ledger.write(vec![bind(3)]).await.unwrap();
    let second = super::files::refused(&place.path).await;
    assert_eq!(second, OpenError::InUse { path: place.path.clone() });
    ledger.close().await;
    assert_eq!(opened(&place.path).await.1, Model::of(&[bind(1), bind(2), bind(3)]));
    assert_eq!(opened(&moved).await.1, Model::of(&[bind(1), bind(2)]));
}

#[tokio::test]
async fn a_directory_that_is_removed_is_trouble_until_it_is_back_and_then_all_is_there() {
    let place = place();
    let home = place.directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let path = home.join("sidecar.redb");
    let (ledger, _) = opened(&path).await;
    ledger.write(vec![bind(1)]).await.unwrap();
    std::fs::remove_dir_all(&home).unwrap();
    assert!(ledger.write(vec![bind(2)]).await.is_err());
    std::fs::create_dir(&home).unwrap();
    goes_on(&ledger).await;
    ledger.close().await;
    assert_eq!(opened(&path).await.1, Model::of(&[bind(1), bind(2)]));
}

#[tokio::test]
async fn another_file_in_its_place_is_trouble_until_that_is_moved_away() {
    let (foreign, _) = filled().await;
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    ledger.write(vec![bind(1)]).await.unwrap();
    std::fs::rename(&foreign.path, &place.path).unwrap();
    let cause = trouble(&ledger).await;
    assert!(cause.starts_with(place.path.to_str().unwrap()), "{cause}");
    assert!(cause.contains("another file was put in its place"), "{cause}");
    let before = std::fs::read(&place.path).unwrap();
    assert!(ledger.write(vec![bind(2)]).await.is_err());
    assert!(ledger.try_write(vec![bind(3)], Vec::new()).await.is_err());
    assert!(ledger.snapshot().unwrap().is_ok(), "it can be exported");
    assert!(std::fs::read(&place.path).unwrap() == before);
    std::fs::rename(&place.path, &foreign.path).unwrap();
    goes_on(&ledger).await;
    ledger.close().await;
    assert_eq!(opened(&place.path).await.1, Model::of(&[bind(1), bind(2)]));
}

#[tokio::test]
async fn a_file_that_is_cut_is_trouble_and_never_taken_for_a_new_one() {
    for length in [0, 5000] {
        let place = place();
        let (ledger, _) = opened(&place.path).await;
        ledger.write(vec![bind(1)]).await.unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&place.path).unwrap();
        file.set_len(length).unwrap();
        assert!(ledger.write(vec![bind(2)]).await.is_err());
        let cause = trouble(&ledger).await;
        assert!(cause.contains(&format!("was cut to {length} bytes")), "{cause}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(ledger.write(vec![bind(2)]).await.is_err());
        ledger.close().await;
        assert!(matches!(refused(&place.path).await, OpenError::Damaged { .. }));
    }
}

#[tokio::test]
async fn a_link_that_leads_nowhere_yet_is_where_it_leads() {
    let place = place();
    let to = place.directory.path().join("volume");
    symlink("volume/state", &place.path).unwrap();
    let ledger = quick(&place.path);
    ledger.open(Restored::default().restore()).await.unwrap();
    let cause = trouble(&ledger).await;
    assert!(cause.contains("a link to ") && cause.contains("volume/state"), "{cause}");
    std::fs::create_dir(&to).unwrap();
    goes_on(&ledger).await;
    ledger.write(vec![bind(1)]).await.unwrap();
    std::fs::remove_file(to.join("state")).unwrap();
    ledger.write(vec![bind(2)]).await.unwrap();
    ledger.close().await;
    assert!(place.path.is_symlink());
    assert_eq!(opened(&to.join("state")).await.1, Model::of(&[bind(1), bind(2)]));
}

#[tokio::test]
async fn what_is_in_the_way_of_a_new_file_is_named_and_a_failure_leaves_nothing_behind() {
    let place = place();
    let new = place.directory.path().join("sidecar.redb.new");
    std::fs::create_dir(&new).unwrap();
    let ledger = quick(&place.path);
    ledger.open(Restored::default().restore()).await.unwrap();
    let cause = trouble(&ledger).await;
    assert!(cause.contains("sidecar.redb.new, as which it is made, is in the way"), "{cause}");
    std::fs::remove_dir(&new).unwrap();
    symlink("/nowhere/at/all", &new).unwrap();
    let again = trouble(&ledger).await;
    assert!(again.contains("is in the way"), "{again}");
    std::fs::remove_file(&new).unwrap();
    goes_on(&ledger).await;
    ledger.close().await;
    assert!(!new.exists());
}

#[tokio::test]
async fn a_damaged_file_that_comes_later_is_told_with_what_to_do_and_goes_on_when_it_is_whole() {
    let (whole, model) = filled().await;
    let place = place();
    let home = place.directory.path().join("home");
    let path = home.join("sidecar.redb");
    let ledger = quick(&path);
    let restored = Restored::default();
    ledger.open(restored.restore()).await.unwrap();
    let mut changes = ledger.trouble();
    changes.mark_unchanged();
    let away = place.directory.path().join("away");
    std::fs::create_dir(&away).unwrap();
    std::fs::write(away.join("sidecar.redb"), "x").unwrap();
    std::fs::rename(&away, &home).unwrap();
    changes.changed().await.unwrap();
    let cause = changes.borrow_and_update().clone().unwrap().cause;
    assert!(cause.contains("is damaged") && cause.contains("state export"), "{cause}");
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    assert!(!changes.has_changed().unwrap(), "it is told once");
    std::fs::rename(&whole.path, &path).unwrap();
    goes_on(&ledger).await;
    assert_eq!(restored.model(), model);
    ledger.close().await;
}

#[tokio::test]
async fn what_is_erased_is_not_in_the_file_any_more() {
    let place = place();
    let (ledger, _) = opened(&place.path).await;
    let start = |number| Change::StartTurn(Box::new(sample::started(number)));
    let end = |number| Change::EndTurn(sample::turn(number), sample::end(number, 3000));
    for number in [3, 12] {
        ledger.write(vec![start(number), end(number)]).await.unwrap();
        ledger.write(vec![bind(number)]).await.unwrap();
    }
    let is_in_it = |text: &str| {
        let bytes = std::fs::read(&place.path).unwrap();
        bytes.windows(text.len()).any(|part| part == text.as_bytes())
    };
    let (erased, stays) = (sample::context(3).context_id, sample::context(12).context_id);
    let reader = ledger.snapshot().unwrap().unwrap();
    drop(ledger.write(vec![Change::ForgetTurn(sample::turn(3))]));
    ledger.write(vec![Change::Unbind(sample::context(3))]).await.unwrap();
    assert!(is_in_it(&erased), "or there is nothing to erase");
    ledger.erase_soon();
    let begun = std::time::Instant::now();
    while is_in_it(&erased) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(is_in_it(&stays));
    drop(reader);
    ledger.write(vec![bind(4)]).await.unwrap();
    ledger.close().await;
    let kept = Model::of(&[start(12), end(12), bind(12), bind(4)]);
    assert_eq!(opened(&place.path).await.1, kept.as_opened());
}

#[tokio::test]
async fn what_no_file_can_be_in_is_refused_in_its_own_words() {
    let place = place();
    let file = place.directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    symlink("around", place.directory.path().join("around")).unwrap();
    for (name, what) in [
        ("n".repeat(300), "too long for a name"),
        ("file/x".to_owned(), "in what is no directory"),
        ("file/".to_owned(), "in what is no directory"),
        ("around".to_owned(), "a link that leads in a circle"),
        (".".to_owned(), "a directory"),
    ] {
        let path = place.directory.path().join(&name);
        let refused = refused(&path).await;
        assert_eq!(refused, OpenError::NotAFile { path, what: what.to_owned() });
        assert!(!refused.to_string().contains("mv "), "{refused}");
    }
}
