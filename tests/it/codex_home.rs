//! What the commands of a turn can do to CODEX_HOME and to the sidecar's state, where these lie in what the
//! turn may write: nothing, or the turn is denied.

use std::path::{Path, PathBuf};

use codex_sidecar::parts::codex_cli;
use codex_sidecar::parts::config::Config;
use codex_sidecar::parts::registry::StatePath;
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use tempfile::TempDir;
use tonic::Code;

use crate::support::binary::Binary;
use crate::support::{Place, Sidecar, codex_path, prompt, with_options};

/// Tries to have a file, which is `$1`, below the directory `$2`, in each way there is; says in a file which
/// went well (older CLIs lose a part of what a command says).
const ATTACK: &str = r#"
file=$1 root=$2 home=$(dirname "$1")
: > did
try() { name=$1; shift; if sh -c "$*" >/dev/null 2>&1; then echo "$name" >> did; fi; }
export file root home
try sibling 'echo x > "$root/sibling"'
try work 'echo x > work-file'
try append 'echo evil >> "$file"'
try new 'echo evil > "$home/evil"'
try link 'ln "$file" hard && echo evil >> hard'
try unlink 'unlink "$file"'
part=$home
while [ "$part" != "$root" ] && [ "$part" != / ]; do
  export part
  try "move $part" 'mv "$part" "$part.moved"'
  part=$(dirname "$part")
done
try swap 'mkdir -p "$home" && echo evil > "$file"'
try symlink 'ln -sfn /nowhere "$home"'
try delete 'find "$home" -delete'
"#;

/// What of the attack is allowed.
const ALLOWED: [&str; 2] = ["sibling", "work"];

fn writing(context: &str, words: &str) -> pb::RunTurnRequest {
    with_options(prompt(context, words), |options| {
        options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
        options.set_approval_policy(pb::ApprovalPolicy::Never);
    })
}

/// A turn that attacks the file, below this root.
fn attacking(place: &Place, file: &Path, root: &Path) -> pb::RunTurnRequest {
    std::fs::write(place.work().join("attack.sh"), ATTACK).unwrap();
    let (file, root) = (file.display(), root.display());
    writing("a", &format!("[[run sh attack.sh {file} {root}; true]] [[say done]]"))
}

/// What of the attack went well.
async fn did(sidecar: &Sidecar, place: &Place, request: pb::RunTurnRequest) -> Vec<String> {
    let told = sidecar.run(request).await;
    assert_eq!(told.final_response(), "done");
    let did = std::fs::read_to_string(place.work().join("did")).unwrap();
    did.lines().map(str::to_owned).collect()
}

/// Whether this CLI keeps what is named `.codex` in what may be written.
async fn keeps_dot_codex() -> bool {
    codex_cli::version(codex_path()).await.unwrap() >= "0.130.0".parse().unwrap()
}

/// Whether Codex's sandbox works here.
async fn can_sandbox(sidecar: &Sidecar) -> bool {
    let request = with_options(prompt("probe", "[[run echo works]]"), |options| {
        options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
    });
    let told = sidecar.run(request).await;
    let works = told.command().aggregated_output.contains("works");
    if !works {
        eprintln!("skipped: Codex's sandbox does not work here: {:#?}", told.command());
    }
    works
}

/// Where a home lies, and which directory makes it writable.
struct Case {
    name: &'static str,
    /// In the place, or absolute.
    home: PathBuf,
    root: PathBuf,
    additional: Option<PathBuf>,
    _temporary: Option<TempDir>,
}

fn case(name: &'static str, home: PathBuf, root: PathBuf, additional: Option<PathBuf>) -> Case {
    Case { name, home, root, additional, _temporary: None }
}

/// Homes with this name in each place that a turn may write.
fn cases(place: &Place, name: &str) -> Vec<Case> {
    let (work, extra) = (place.work(), place.path().join("extra"));
    std::fs::create_dir_all(&extra).unwrap();
    let temporary = tempfile::tempdir_in("/tmp").unwrap();
    let below = temporary.path().canonicalize().unwrap().join("deep").join(name);
    let in_tmp = Case {
        _temporary: Some(temporary),
        ..case("/tmp", below, PathBuf::from("/tmp").canonicalize().unwrap(), None)
    };
    vec![
        case("the working directory", work.join(name), work.clone(), None),
        case("deep in it", work.join("a/b").join(name), work.clone(), None),
        case("an additional directory", extra.join("c").join(name), extra.clone(), Some(extra)),
        in_tmp,
    ]
}

fn with_root(request: pb::RunTurnRequest, additional: Option<&Path>) -> pb::RunTurnRequest {
    with_options(request, |options| {
        options.additional_directories =
            additional.map(|path| path.display().to_string()).into_iter().collect();
    })
}

/// A sidecar on this home.
async fn on(home: &Path, change: impl FnOnce(&mut Config)) -> Sidecar {
    std::fs::create_dir_all(home).unwrap();
    std::fs::write(home.join("config.toml"), "# ours\n").unwrap();
    Sidecar::in_place(Place::new(), |_, config| {
        config.codex_home = home.to_owned();
        change(config);
    })
    .await
}

fn denied(refused: &crate::support::Refused, field: &str, path: &Path) {
    refused.assert(Code::PermissionDenied, "POLICY_DENIED");
    assert_eq!(refused.field_paths(), [field], "{refused:#?}");
    let path = path.display().to_string();
    assert!(refused.fields[0].1.contains(&path), "{path}: {refused:#?}");
    assert!(refused.fields[0].1.contains("allow_writable_codex_home"), "{refused:#?}");
}

#[tokio::test]
async fn a_home_named_dot_codex_is_kept_from_commands_wherever_a_turn_may_write() {
    let place = Place::new();
    let mut homes = cases(&place, ".codex");
    // One of several in it.
    let work = place.work();
    homes.push(case("below one", work.join(".codex/tenants/a"), work, None));
    for Case { name, home, root, additional, _temporary } in homes {
        let sidecar = on(&home, |_| {}).await;
        if !can_sandbox(&sidecar).await {
            return;
        }
        let work = place.work().display().to_string();
        let config = home.join("config.toml");
        let mut request = attacking(&place, &config, &root);
        request = with_root(request, additional.as_deref());
        request.thread_options.as_mut().unwrap().working_directory = Some(work);
        if !keeps_dot_codex().await {
            let refused = sidecar.refused(request).await;
            refused.assert(Code::PermissionDenied, "POLICY_DENIED");
            assert!(refused.fields[0].1.contains("0.130"), "{refused:#?}");
            sidecar.stop().await;
            continue;
        }
        let told = sidecar.run(request.clone()).await;
        let settings = told.events.iter().find_map(|event| match &event.event {
            Some(Event::TurnStarted(started)) => started.settings.clone(),
            _ => None,
        });
        let settings = settings.unwrap();
        for told in &settings.writable_roots {
            let root = Path::new(told);
            assert!(
                root == Path::new("/tmp")
                    || told == "$TMPDIR"
                    || Some(root) == additional.as_deref(),
                "{name}: {settings:#?}"
            );
        }
        // Also on the loaded thread.
        for round in 0..2 {
            let did = did(&sidecar, &place, request.clone()).await;
            assert_eq!(did, ALLOWED, "{name}, {round}");
            assert_eq!(std::fs::read_to_string(&config).unwrap(), "# ours\n", "{name}");
            assert!(!home.join("evil").exists(), "{name}");
        }
        sidecar.stop().await;
    }
}

#[tokio::test]
async fn a_home_of_another_name_where_a_turn_may_write_denies_the_turn_and_nothing_runs() {
    let version = codex_cli::version(codex_path()).await.unwrap();
    let place = Place::new();
    for Case { name, home, root, additional, _temporary } in cases(&place, "home") {
        let sidecar = on(&home, |_| {}).await;
        let work = place.work().display().to_string();
        let config = home.join("config.toml");
        let mut request = attacking(&place, &config, &root);
        request = with_root(request, additional.as_deref());
        request.thread_options.as_mut().unwrap().working_directory = Some(work);
        let field = match name {
            "/tmp" => "thread_options.sandbox_mode",
            "an additional directory" => "thread_options.additional_directories[0]",
            _ => "thread_options.working_directory",
        };
        for _ in 0..2 {
            denied(&sidecar.refused(request.clone()).await, field, &root);
        }
        assert_eq!(sidecar.model.requests(), 0, "{name}");
        assert!(!place.work().join("work-file").exists(), "{name}");
        sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
        // The other sandboxes are no matter of this.
        for mode in [pb::SandboxMode::ReadOnly, pb::SandboxMode::DangerFullAccess] {
            let request = with_options(request.clone(), |options| options.set_sandbox_mode(mode));
            let request =
                pb::RunTurnRequest { inputs: vec![crate::support::text("hello")], ..request };
            sidecar.run(request).await.completed();
        }
        // On the thread that is there now, too.
        denied(&sidecar.refused(request.clone()).await, field, &root);
        let built_in = with_options(request, |options| {
            options.set_sandbox_mode(pb::SandboxMode::Unspecified);
            options.permission_profile = ":workspace".to_owned();
        });
        if additional.is_none() && version >= "0.150.0".parse().unwrap() {
            denied(&sidecar.refused(built_in).await, field, &root);
        }
        sidecar.stop().await;
    }
}

#[tokio::test]
async fn with_the_setting_it_can_be_written() {
    let place = Place::new();
    let home = place.work().join("home");
    let sidecar = on(&home, |config| config.allow_writable_codex_home = true).await;
    if !can_sandbox(&sidecar).await {
        return;
    }
    let mut request = attacking(&place, &home.join("config.toml"), &place.work());
    request.thread_options.as_mut().unwrap().working_directory =
        Some(place.work().display().to_string());
    let did = did(&sidecar, &place, request).await;
    assert!(did.contains(&"append".to_owned()), "{did:?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_state_that_lies_elsewhere_is_kept_as_the_home_is() {
    let place = Place::new();
    let (kept, lost) = (place.work().join(".codex/state/s.redb"), place.work().join("s.redb"));
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    let at = |path: &Path| Some(StatePath::File(path.to_owned()));
    let work = place.work().display().to_string();
    let in_work = |mut request: pb::RunTurnRequest| {
        request.thread_options.as_mut().unwrap().working_directory = Some(work.clone());
        request
    };

    let sidecar = Sidecar::with(|config| config.state.path = at(&kept)).await;
    if !can_sandbox(&sidecar).await {
        return;
    }
    if keeps_dot_codex().await {
        let attack = in_work(attacking(&place, &kept, &place.work()));
        assert_eq!(did(&sidecar, &place, attack).await, ALLOWED);
    }
    sidecar.stop().await;

    let sidecar = Sidecar::with(|config| config.state.path = at(&lost)).await;
    let refused = sidecar.refused(in_work(attacking(&place, &lost, &place.work()))).await;
    denied(&refused, "thread_options.working_directory", &lost);
    sidecar.stop().await;
}

#[tokio::test]
async fn what_the_configuration_lets_be_written_counts_where_the_request_says_nothing() {
    let place = Place::new();
    let (home, extra) = (place.work().join("home"), place.path().join("extra"));
    std::fs::create_dir_all(&extra).unwrap();
    let sidecar = on(&home, |_| {}).await;
    let config = |text: String| std::fs::write(home.join("config.toml"), text).unwrap();
    let unsaid = |context: &str, directory: &Path| {
        with_options(prompt(context, "hello"), |options| {
            options.working_directory = Some(directory.display().to_string());
            options.skip_git_repo_check = Some(true);
        })
    };
    // Read-only by default.
    sidecar.run(unsaid("a", &place.work())).await.completed();
    config("sandbox_mode = \"workspace-write\"\n".to_owned());
    // Read-only still, on the thread that was opened so.
    sidecar.run(unsaid("a", &place.work())).await.completed();
    let refused = sidecar.refused(unsaid("b", &place.work())).await;
    denied(&refused, "thread_options.working_directory", &place.work());
    sidecar.run(unsaid("b", &extra)).await.completed();
    let refused = sidecar.refused(unsaid("b", &place.work())).await;
    denied(&refused, "thread_options.working_directory", &place.work());
    let work = place.work();
    config(format!(
        "sandbox_mode = \"workspace-write\"\n[sandbox_workspace_write]\nwritable_roots = [{:?}]\n",
        work.display().to_string()
    ));
    let refused = sidecar.refused(unsaid("c", &extra)).await;
    denied(&refused, "thread_options.sandbox_mode", &work);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_profile_that_lets_the_home_be_written_denies_the_turn() {
    let version = codex_cli::version(codex_path()).await.unwrap();
    if version < "0.150.0".parse().unwrap() {
        eprintln!("skipped: {version} has no profiles");
        return;
    }
    let place = Place::new();
    let home = place.work().join("home");
    let sidecar = on(&home, |_| {}).await;
    let text = format!(
        "sandbox_mode = \"read-only\"\n[permissions.open]\nextends = \":workspace\"\n\
         [permissions.shut]\nextends = \":workspace\"\n[permissions.shut.filesystem]\n{:?} = \"read\"\n",
        home.display().to_string()
    );
    std::fs::write(home.join("config.toml"), &text).unwrap();
    let under = |profile: &str, words: &str| {
        with_options(prompt(profile, words), |options| {
            options.permission_profile = profile.to_owned();
            options.working_directory = Some(place.work().display().to_string());
            options.set_approval_policy(pb::ApprovalPolicy::Never);
        })
    };
    for _ in 0..2 {
        let refused = sidecar.refused(under("open", "hello")).await;
        denied(&refused, "thread_options.permission_profile", &home);
    }
    assert_eq!(sidecar.model.requests(), 0);
    if can_sandbox(&sidecar).await {
        let config = home.join("config.toml");
        let attack = attacking(&place, &config, &place.work()).inputs.remove(0);
        let request = pb::RunTurnRequest { inputs: vec![attack], ..under("shut", "") };
        assert_eq!(did(&sidecar, &place, request).await, ALLOWED);
        assert_eq!(std::fs::read_to_string(&config).unwrap(), text);
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn a_link_to_the_home_is_followed_for_workers_and_can_not_be_replaced() {
    let place = Place::new();
    let real = place.path().join("real");
    let link = place.work().join("link");
    std::fs::create_dir_all(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let sidecar = on(&link, |_| {}).await;
    let worker = sidecar.workers().await[0].pid;
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let expected = format!("CODEX_HOME={}", real.display());
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.split('\0').any(|variable| variable == expected), "{environment}");
    assert_eq!(sidecar.info().await.codex_home, link.display().to_string());
    let mut request = writing("a", "hello");
    request.thread_options.as_mut().unwrap().working_directory =
        Some(place.work().display().to_string());
    denied(&sidecar.refused(request).await, "thread_options.working_directory", &link);
    sidecar.stop().await;
}

#[tokio::test]
async fn serve_says_once_where_a_home_lies_that_turns_may_write() {
    let temporary = tempfile::tempdir_in("/tmp").unwrap();
    let home = temporary.path().canonicalize().unwrap().join("home");
    std::fs::create_dir(&home).unwrap();
    let sidecar = Binary::with(|command| {
        command.env("CODEX_HOME", &home).env("CODEX_SIDECAR_WORKERS", "2");
    })
    .await;
    let log = sidecar.log();
    let told = |words: &str| log.matches(words).count();
    assert_eq!(told("lies in a temporary directory"), 1, "{log}");
    assert_eq!(told("WORKSPACE_WRITE turns are denied by policy"), 1, "{log}");
    assert!(log.contains(&home.display().to_string()), "{log}");
    sidecar.stop().await;

    let sidecar = Binary::start().await;
    let log = sidecar.log();
    assert!(!log.contains("denied by policy"), "{log}");
    sidecar.stop().await;
}

/// Codex mounts the roots anew for each command, wherever their paths lead by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_in_another_root_can_not_be_led_elsewhere() {
    for is_allowed in [false, true] {
        let home = Place::new();
        let sidecar = on(&home.path().join("elsewhere"), |config| {
            config.allow_writable_codex_home = is_allowed;
        })
        .await;
        if !can_sandbox(&sidecar).await {
            sidecar.stop().await;
            return;
        }
        let (work, home) = (sidecar.place.work(), home.path().join("elsewhere"));
        let inner = work.join("x/inner");
        std::fs::create_dir_all(&inner).unwrap();
        let words = format!(
            "[[run echo one > x/inner/one; mv x y; mkdir x; ln -s {home} x/inner]] \
             [[run echo evil > {home}/evil; true]] [[say done]]",
            home = home.display()
        );
        let told = sidecar.run(with_root(writing("a", &words), Some(&inner))).await;
        assert_eq!(told.final_response(), "done");
        assert!(!home.join("evil").exists(), "a command has written {}", home.display());
        // In the root that was asked for, which is what it was.
        assert_eq!(std::fs::read_to_string(inner.join("one")).unwrap(), "one\n");
        // By a link that commands could replace it is no root.
        std::os::unix::fs::symlink("/opt", work.join("link")).unwrap();
        let linked = with_root(writing("a", "[[say done]]"), Some(&work.join("link")));
        let refused = sidecar.refused(linked).await;
        refused.assert(Code::PermissionDenied, "POLICY_DENIED");
        assert_eq!(refused.field_paths(), ["thread_options.additional_directories[0]"]);
        sidecar.stop().await;
    }
}
