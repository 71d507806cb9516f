//! How the workers come by the key of Codex's own provider, and what becomes of a login in CODEX_HOME.
//!
//! The offline model is not asked: what stands in its place notes who it is asked by.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use codex_sidecar::pb;

use crate::support;
use crate::support::binary::Binary;

const KEY: &str = "sk-canary-of-the-sidecar";
const LOGIN: &str = "sk-canary-of-the-login";

/// A provider that refuses every request, and what it was asked by.
struct Provider {
    address: String,
    authorizations: Arc<Mutex<Vec<Option<String>>>>,
}

impl Provider {
    fn start(status: &'static str) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let authorizations = Arc::default();
        let provider = Provider { address, authorizations: Arc::clone(&authorizations) };
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let authorizations = Arc::clone(&authorizations);
                std::thread::spawn(move || {
                    // A connection that breaks is asked again.
                    let _ = refuse(&stream, status, &authorizations);
                });
            }
        });
        provider
    }

    /// All the different ways in which it was asked for an answer.
    fn asked_by(&self) -> Vec<Option<String>> {
        let mut all = self.authorizations.lock().unwrap().clone();
        all.sort();
        all.dedup();
        all
    }
}

fn refuse(
    stream: &TcpStream,
    status: &str,
    authorizations: &Mutex<Vec<Option<String>>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let header = |wanted: &str| {
        let headers = lines.iter().filter_map(|line| line.split_once(": "));
        let mut found = headers.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.next().map(|(_, value)| value.to_owned())
    };
    let length = header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    if lines.first().is_some_and(|line| line.contains("/responses")) {
        authorizations.lock().unwrap().push(header("authorization"));
    }
    // It speaks no WebSocket.
    let status = if header("upgrade").is_some() { "426 Upgrade Required" } else { status };
    let body = r#"{"error":{"message":"refused"}}"#;
    let length = body.len();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}

/// A sidecar whose workers ask this provider as Codex's own, or as `model_provider` says.
async fn sidecar(
    provider: &Provider,
    model_provider: &str,
    variable: &str,
    login: Option<&str>,
) -> Binary {
    let place = support::Place::new();
    let address = &provider.address;
    let codex = format!(
        "[model_providers.other]\nname = \"other\"\nbase_url = \"http://{address}/v1\"\n\
         env_key = \"CODEX_API_KEY\"\n"
    );
    if model_provider == "other" {
        std::fs::write(place.codex_home().join("config.toml"), codex).unwrap();
    }
    if let Some(login) = login {
        std::fs::write(place.codex_home().join("auth.json"), login).unwrap();
    }
    let settings = format!(
        "[worker.config]\nmodel_provider = \"{model_provider}\"\nopenai_base_url = \"http://{address}/v1\"\n"
    );
    let file = place.path().join("sidecar.toml");
    std::fs::write(&file, settings).unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.env(variable, KEY).env("CODEX_SIDECAR_LOG", "trace").arg("--config").arg(&file);
    })
    .await;
    sidecar.ready().await;
    sidecar
}

/// The files below a directory that hold a text.
fn holding(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()) {
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let is_in = bytes.windows(text.len()).any(|part| part == text.as_bytes());
            found.extend(is_in.then_some(path));
        }
    }
    found
}

fn of_worker(sidecar: &pb::Worker, name: &str) -> String {
    let text = std::fs::read(format!("/proc/{}/{name}", sidecar.pid)).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn bearer(key: &str) -> Vec<Option<String>> {
    vec![Some(format!("Bearer {key}"))]
}

#[tokio::test]
async fn codexs_own_provider_is_asked_with_the_sidecars_key_which_is_nowhere_else() {
    // A key wins over a login, which is left as it is.
    let login = format!("{{\"OPENAI_API_KEY\": \"{LOGIN}\"}}");
    let provider = Provider::start("401 Unauthorized");
    let sidecar = sidecar(&provider, "openai", "CODEX_API_KEY", Some(&login)).await;
    let told = sidecar.say("a", "hello").await;
    let error = told.failed();
    assert_eq!((error.reason.as_str(), error.http_status), ("UNAUTHORIZED", Some(401)));
    assert_eq!(provider.asked_by(), bearer(KEY), "{}", sidecar.log());

    let workers = sidecar.workers().await;
    assert_eq!(workers.len(), 1);
    for name in ["environ", "cmdline"] {
        let text = of_worker(&workers[0], name);
        assert!(text.contains("codex") && !text.contains(KEY), "{name}: {text}");
    }
    assert!(!sidecar.log().contains(KEY), "{}", sidecar.log());
    let place = sidecar.stop().await;
    assert_eq!(holding(&place.codex_home(), KEY), Vec::<PathBuf>::new());
    assert_eq!(std::fs::read_to_string(place.codex_home().join("auth.json")).unwrap(), login);
    assert_eq!(holding(&place.codex_home(), LOGIN), [place.codex_home().join("auth.json")]);
}

#[tokio::test]
async fn the_key_that_is_many_programs_is_used_where_there_is_no_login() {
    let login = format!("{{\"OPENAI_API_KEY\": \"{LOGIN}\"}}");
    for (login, used) in [(None, KEY), (Some(login.as_str()), LOGIN)] {
        let provider = Provider::start("400 Bad Request");
        let sidecar = sidecar(&provider, "openai", "OPENAI_API_KEY", login).await;
        sidecar.say("a", "hello").await.failed();
        assert_eq!(provider.asked_by(), bearer(used), "{}", sidecar.log());
        let place = sidecar.stop().await;
        assert_eq!(place.codex_home().join("auth.json").exists(), login.is_some());
    }
}

#[tokio::test]
async fn a_provider_that_names_the_keys_variable_finds_it_there() {
    let provider = Provider::start("400 Bad Request");
    let sidecar = sidecar(&provider, "other", "CODEX_API_KEY", None).await;
    sidecar.say("a", "hello").await.failed();
    assert_eq!(provider.asked_by(), bearer(KEY), "{}", sidecar.log());
    let workers = sidecar.workers().await;
    assert!(of_worker(&workers[0], "environ").contains(KEY));
    sidecar.stop().await;
}
