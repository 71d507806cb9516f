//! What is told, and what is never written over.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;

use super::{StateArgs, state};
use crate::cli::failure::Failure;
use crate::registry::ledger::file;
use crate::registry::ledger::import::{ImportRules, import};

#[derive(Debug, clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    state: StateArgs,
}

/// The exit status of `state` with these arguments, and what it tells.
async fn run<A: Into<OsString> + Clone>(arguments: &[A]) -> (u8, String) {
    let arguments = arguments.iter().cloned().map(Into::into);
    let line =
        CommandLine::try_parse_from(std::iter::once(OsString::from("state")).chain(arguments));
    match state(line.unwrap().state).await {
        Ok(code) => (code, String::new()),
        Err(Failure::Told { message, code }) => (code, message),
        Err(other) => panic!("{other:?}"),
    }
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A state with nothing in it.
    fn state(&self) -> PathBuf {
        let path = self.path("sidecar.redb");
        let lines = concat!(
            r#"{"kind":"header","format":"codex-sidecar state","version":1,"sidecar_version":"1","create_time":"2026-01-01T00:00:00Z"}"#,
            "\n",
            r#"{"kind":"context","context_id":"a","thread_id_key":"codex_thread_id","thread_id":"t","create_time":"2026-01-01T00:00:00Z","update_time":"2026-01-01T00:00:00Z","use_time":"2026-01-01T00:00:00Z","turn_count":1}"#,
            "\n",
            r#"{"kind":"end","contexts":1,"evicted_contexts":0,"threads":0,"turns":0,"directories":0}"#,
        );
        import(&path, lines.as_bytes(), ImportRules::default()).unwrap();
        path
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.directory.path()).unwrap().count()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn an_export_is_never_written_over_a_state() {
    let place = Place::new();
    let (path, link, damaged) = (place.state(), place.path("link"), place.path("damaged.redb"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..512].fill(0);
    std::fs::write(&damaged, &bytes).unwrap();
    // Of one that runs: its own is locked, whatever it begins with.
    let running = place.path("running.redb");
    std::fs::write(&running, "locked").unwrap();
    let lock = std::fs::File::open(&running).unwrap();
    lock.lock().unwrap();
    let files = place.files();
    for (exported, output) in
        [(&path, &path), (&path, &link), (&damaged, &damaged), (&damaged, &path), (&path, &running)]
    {
        let (code, told) = run(&["export", text(exported), "-o", text(output)]).await;
        assert_eq!(code, 2, "{output:?}: {told}");
        assert!(told.contains("is a state itself"), "{told}");
    }
    assert!(file::check(&path).is_ok());
    assert!(std::fs::read(&damaged).unwrap() == bytes);
    assert_eq!(std::fs::read(&running).unwrap(), b"locked");
    assert_eq!(place.files(), files);
}

#[tokio::test]
async fn an_export_takes_its_name_when_it_is_whole_and_no_other_file_is_touched() {
    let place = Place::new();
    let (path, lines, link) = (place.state(), place.path("lines.jsonl"), place.path("link"));
    let precious = place.path("lines.jsonl.new");
    std::fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&lines, &link).unwrap();
    std::fs::write(&lines, "an older one").unwrap();
    let files = place.files();
    assert_eq!(run(&["export", text(&path), "-o", text(&link)]).await.0, 0);
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(std::fs::read_to_string(&lines).unwrap().ends_with("\"directories\":0}\n"));
    assert_eq!(lines.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.files(), files);
    // One that fails leaves nothing.
    let (code, _) = run(&["export", text(&place.path("none")), "-o", text(&lines)]).await;
    assert_eq!((code, place.files()), (1, files));
}

#[tokio::test]
async fn what_can_be_no_state_is_told_as_that_and_at_once() {
    let place = Place::new();
    let (pipe, lines) = (place.path("pipe"), place.path("lines"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    std::fs::write(&lines, "{}").unwrap();
    for path in [Path::new("/dev/null"), place.directory.path(), &pipe] {
        for command in [&["check"][..], &["export"], &["import", text(&lines)]] {
            let arguments = [command, &["--state", text(path)]].concat();
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            // In a thread of its own: one that waited for a pipe would never end.
            let (done, told) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let _ = done.send(runtime.block_on(run(&arguments)));
            });
            let told = tokio::time::timeout(Duration::from_secs(20), told).await;
            let (code, told) = told.expect("it waits").unwrap();
            assert_eq!(code, 64, "{path:?}: {told}");
            assert!(told.contains("--state") && !told.contains("mv "), "{told}");
        }
    }
}

#[tokio::test]
async fn where_nothing_can_be_saved_nothing_is_exported_and_the_way_on_is_told() {
    let place = Place::new();
    let path = place.path("sidecar.redb");
    for content in ["", "of another program"] {
        std::fs::write(&path, content).unwrap();
        for command in [&["check"][..], &["export", "-o", text(&place.path("lines"))]] {
            let (code, told) = run(&[command, &["--state", text(&path)]].concat()).await;
            assert_eq!(code, 1, "{told}");
            assert!(
                told.contains("nothing in it can be read") && told.contains("\n  mv "),
                "{told}"
            );
            assert!(!told.contains("--partial"), "{told}");
        }
    }
    assert_eq!(place.files(), 1);
    // What was exported and not imported.
    std::fs::write(&path, "{\"kind\":\"header\"}\n").unwrap();
    let (code, told) = run(&["check", text(&path)]).await;
    assert_eq!(code, 1);
    assert!(told.contains("are lines") && told.contains("state import "), "{told}");
}

#[tokio::test]
async fn an_import_says_what_is_wrong_once_and_in_its_own_words() {
    let place = Place::new();
    let (lines, path) = (place.path("lines"), place.path("sidecar.redb"));
    let import = async |content: &str, more: &[&str]| {
        std::fs::write(&lines, content).unwrap();
        let arguments = [&["import", text(&lines), "--state", text(&path)], more].concat();
        let (code, told) = run(&arguments).await;
        assert_eq!(code, 1, "{told}");
        assert_eq!(place.files(), 1, "{told}");
        told
    };
    let told = import("", &[]).await;
    assert!(told.ends_with(":\n  there is nothing in it"), "{told}");
    let told = import("x\n", &[]).await;
    assert!(told.contains("\n--partial takes"), "{told}");
    let told = import("x\n", &["--partial"]).await;
    assert!(!told.contains("--partial") && told.contains("no line of it"), "{told}");
    let nowhere = place.path("none/sidecar.redb");
    let (code, told) = run(&["import", text(&lines), "--state", text(&nowhere)]).await;
    assert_eq!(code, 1);
    assert!(told.starts_with("there is no directory") && told.contains("--state"), "{told}");
    let (_, told) = run(&["import", text(place.directory.path()), "--state", text(&path)]).await;
    assert!(told.ends_with("it is a directory"), "{told}");
}

#[tokio::test]
async fn the_state_of_a_tenant_is_found_by_its_name() {
    let place = Place::new();
    let config = place.path("sidecar.toml");
    let tables = "codex_home = \"top\"\n[tenants.a]\ncodex_home = \"a\"\n\
                  [tenants.b]\ncodex_home = \"b\"\nstate.path = \"b.redb\"\n";
    std::fs::write(&config, tables).unwrap();
    let expected = [("default", "top/sidecar.redb"), ("a", "a/sidecar.redb"), ("b", "b.redb")];
    for (tenant, file) in expected {
        let (code, told) = run(&["check", "--config", text(&config), "--tenant", tenant]).await;
        assert_eq!(code, 1, "{told}");
        assert!(
            told.contains(&format!("there is no state at {}:", text(&place.path(file)))),
            "{told}"
        );
    }
    let (code, told) = run(&["export", "--config", text(&config), "--tenant", "c"]).await;
    assert_eq!(code, 64);
    assert!(told.starts_with("--tenant \"c\": ") && told.contains("default, a, b"), "{told}");
}
