//! What the subcommands show, and what they say where that is not enough.

use std::process::Output;

use tokio::process::Command;

use super::pki::{Authority, pair};
use super::write;
use crate::support::binary::{self, Binary};
use crate::support::{Place, scripted};

fn told(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it).into_owned());
    format!("{}: {out}{err}", output.status)
}

/// What is wrong in the configuration itself, and in what it names, is mended in one round: each fault has
/// the name of the place that says it.
#[tokio::test]
async fn every_fault_of_what_a_configuration_names_is_told_with_its_own_at_once() {
    let place = Place::new();
    let ours = Authority::new();
    let [certificate, _] = pair(place.path(), "one", &ours.server());
    let [_, key] = pair(place.path(), "other", &ours.server());
    let text = "unix_group = \"no-such-group\"\n\
                [tenants.a]\ncodex_home = \"home-a\"\ntoken_file = \"a.tokens\"\n\
                [tools.codex]\noutput_schema = { type = \"object\", oneOf = [{}] }\n";
    let serve = async |text: &str| {
        let file = write(&place.path().join("sidecar.toml"), text);
        let mut command = binary::command(&place);
        command.arg("serve").arg("--config").arg(&file);
        command.args(["--tls-client-ca", "/no/ca", "--token-file", "/no/tokens"]);
        command.arg("--tls-cert").arg(&certificate).env("CODEX_SIDECAR_TLS_KEY", &key);
        let output = binary::output(&mut command).await;
        assert_eq!(output.status.code(), Some(64), "{}", told(&output));
        let said = String::from_utf8(output.stderr).unwrap();
        said.replace(file.to_str().unwrap(), "FILE")
    };
    let wanted = [
        "error: FILE: tools.codex.output_schema: ",
        "error: FILE: unix_group: \"no-such-group\": ",
        "error: --tls-client-ca: /no/ca: can't be read",
        "error: CODEX_SIDECAR_TLS_KEY: ",
        "error: --token-file: /no/tokens: can't be read",
        "error: FILE: tenants.a.token_file: ",
    ];
    let all_told = |said: &str, more: usize| {
        for wanted in wanted {
            let lines = said.lines().filter(|line| line.starts_with(wanted)).count();
            assert_eq!(lines, 1, "{wanted} in\n{said}");
        }
        let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, wanted.len() + more, "{said}");
    };
    all_told(&serve(text).await, 0);
    let said = serve(&format!("workers = 0\n{text}")).await;
    all_told(&said, 1);
    assert!(said.contains("error: FILE: workers: 0: wants"), "{said}");
}

#[tokio::test]
async fn a_new_token_is_shown_by_a_file_or_a_variable_and_without_it_nothing_runs() {
    let place = Place::new();
    let [file, mine] = ["tokens", "mine"].map(|name| place.path().join(name));
    let new = async |arguments: &[&str]| {
        let mut command = binary::command(&place);
        let output = binary::output(command.args(["token", "new"]).args(arguments)).await;
        assert!(output.status.success(), "{}", told(&output));
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        (out.trim().to_owned(), err)
    };
    let (token, said) = new(&["--file", file.to_str().unwrap()]).await;
    assert_eq!(said, "");
    let (other, line) = new(&["--expires", "1d"]).await;
    assert!(
        line.contains("sha256:") && line.contains("expires=") && !line.contains(&other),
        "{line}"
    );
    let listed = std::fs::read_to_string(&file).unwrap();
    assert!(listed.starts_with("sha256:") && !listed.contains(&token), "{listed}");
    write(&mine, &token);

    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", scripted::fake_cli()).arg("--token-file").arg(&file);
    })
    .await;
    sidecar.ready().await;
    let run = async |arguments: &[&str], change: &dyn Fn(&mut Command)| {
        let mut command = binary::command(&sidecar.place);
        command.env("CODEX_SIDECAR_ADDR", &sidecar.address).current_dir(sidecar.place.work());
        command.args(arguments);
        change(&mut command);
        binary::output(&mut command).await
    };
    let by_variable = |command: &mut Command| {
        command.env("CODEX_SIDECAR_TOKEN", &token);
    };
    let by_file = |command: &mut Command| {
        command.arg("--token-file").arg(&mine);
    };
    let calls: [&[&str]; 5] = [
        &["run", "--context", "c", "Hello."],
        &["info"],
        &["turns"],
        &["workers", "--json"],
        &["contexts", "list"],
    ];
    for arguments in calls {
        for show in [&by_variable as &dyn Fn(&mut Command), &by_file] {
            let output = run(arguments, show).await;
            assert!(output.status.success(), "{arguments:?}: {}", told(&output));
        }
        let refused = run(arguments, &|_| {}).await;
        assert_eq!(refused.status.code(), Some(3), "{arguments:?}: {}", told(&refused));
        let said = told(&refused);
        assert!(said.contains("--token-file") && said.contains("token new"), "{said}");
    }
    let exec = run(&["exec", "--json", "Hello."], &by_variable).await;
    assert!(exec.status.success(), "{}", told(&exec));
    let refused = run(&["exec", "--json", "Hello."], &|_| {}).await;
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    let said = told(&refused);
    assert!(said.contains("CODEX_SIDECAR_TOKEN") && !said.contains("--token-file"), "{said}");
    // A probe needs nothing, and does not look whether it has something.
    let health = run(&["health", "--token-file", "/no/such/file"], &|_| {}).await;
    assert!(health.status.success(), "{}", told(&health));

    let wrong = run(&["info"], &|command| {
        command.env("CODEX_SIDECAR_TOKEN", "short-canary");
    })
    .await;
    assert_eq!(wrong.status.code(), Some(64), "{}", told(&wrong));
    assert!(told(&wrong).contains("CODEX_SIDECAR_TOKEN") && !told(&wrong).contains("canary"));
    let hashes = run(&["info", "--token-file", file.to_str().unwrap()], &|_| {}).await;
    assert_eq!(hashes.status.code(), Some(64), "{}", told(&hashes));
    assert!(told(&hashes).contains("only hashes"), "{}", told(&hashes));
    sidecar.stop().await;
}
