//! A scripted stand-in for `codex app-server`, for the faults that the real CLI can't be made to show.
//!
//! It is started like the CLI (`fake_app_server app-server -c … --disable …`; both flags are ignored; `--version` prints
//! `codex-cli 0.169.0`) and speaks the protocol of 0.169.0 on its standard streams, in the same shapes and the same
//! order. `cargo test` builds it at `target/<profile>/examples/fake_app_server`. It needs CODEX_HOME and keeps all that
//! it writes in there. Nothing in it is random but ids, and nothing happens by itself but what a script says.
//!
//! Every turn is answered `You said: {last user text} (user messages so far: {n})`, word by word, unless its prompt says
//! otherwise in `[[directives]]`. Faults of the process as a whole are settings: variables or `CODEX_HOME/fake.json`.
//!
//! # As Codex does it
//!
//! - `initialize` (the user agent is `{client}/{version} (fake)`), `config/read`, `model/list`, `server/diagnostics`,
//!   `thread/start | resume | read | archive | unarchive | unsubscribe | loaded/list`, `thread/backgroundTerminals/list |
//!   terminate`, `turn/start | steer | interrupt`. Any other method is refused with Codex's words, and so are a wrong
//!   turn id, a turn that does not run, a thread that is not loaded, and an input of more than 1,048,576 characters.
//! - A thread can be resumed once its first turn began (or it was archived): `no rollout found for thread id …`. It
//!   remembers its messages, its token counts and what `turn/start` set for it, all but the sandbox.
//! - A thread has one writer among all processes of a CODEX_HOME: `thread … already has an active writer`. The end of
//!   that process frees it, and so does archiving, which also ends its turn and its commands; unsubscribing does not.
//! - What `turn/start` (or `thread/settings/update`) changes of a thread's settings is told by `thread/settings/updated`,
//!   before the answer.
//! - A second `turn/start` on a busy thread is steering: same turn id. What is steered is taken as one more user
//!   message when the script so far is done, with the directives it has (of those that hold for a whole turn, only
//!   `slow`).
//! - An interrupted turn answers `{}`, then ends; its commands live on, each in a session of its own, and are told of
//!   when they end.
//! - End of input and SIGTERM end the process at once, with status 0.
//!
//! # Directives
//!
//! `[[` opens one where a lower-case letter follows; pairs of brackets nest. They are done in order; with no answer
//! among them (those marked *), the default answer ends the turn. A mistake is answered, and nothing is done. MS is a
//! number of milliseconds or a duration (`2s`); HOW is an exit status (`3`), a signal (`KILL`, `SEGV`) or nothing: 101.
//!
//! | what it says | what happens |
//! |---|---|
//! | `say TEXT` * | an agent message of exactly that text |
//! | `words N` * | an agent message `w1 w2 … wN`, one delta per word |
//! | `items N BYTES` * | N agent messages of BYTES bytes each |
//! | `ask METHOD {…}` * | a request to the client, waited for; an agent message says what came back (`METHOD was answered: …`, `METHOD was refused: …`). Codex's own methods have all their parameters, of which the JSON replaces some (`{"threadId": null}`); it may be left out. |
//! | `reason TEXT` | a reasoning item with a streamed summary |
//! | `plan A; B; C` | `turn/plan/updated`: A completed, B in progress, the rest pending |
//! | `run COMMAND` | a real command, waited for; its output is told |
//! | `spawn COMMAND` | a real command, not waited for |
//! | `wait MS` | a pause |
//! | `hang` | silence from here on, until an interruption |
//! | `retry N` | N times, 50 ms apart, an `error` with `willRetry` |
//! | `warn TEXT` | a `warning` |
//! | `unknown-item` | an item `hologram` |
//! | `line N` | a `turn/diff/updated` whose line has exactly N bytes |
//! | `endless-line` | a line that never ends; the process writes nothing else any more |
//! | `stderr N` | N bytes on stderr, in lines of 64 |
//! | `stderr-line N` | one line of N bytes there |
//! | `stderr-text TEXT` | this line there |
//! | `grow N` | N MiB of memory more, for good |
//! | `die HOW` | the process ends here |
//! | `fail INFO MESSAGE` | the turn fails with this `codexErrorInfo`: a name (`usageLimitExceeded`) or JSON |
//!
//! These hold for the whole turn, wherever they stand:
//!
//! | what it says | what happens |
//! |---|---|
//! | `slow MS` | a pause between deltas |
//! | `refuse CODE MESSAGE` | `turn/start` is answered with this error |
//! | `no-end` | `turn/completed` is left out, whatever the end was; the thread is idle then |
//! | `double-end` | `turn/completed` comes twice |
//! | `late`, `late N` | N agent messages of this turn (1) after its end |
//! | `ignore-interrupt` | `turn/interrupt` is answered, and the turn goes on |
//!
//! # Settings
//!
//! A setting is the variable `FAKE_NAME` (JSON; what is no JSON is a text) or the key `name` of `CODEX_HOME/fake.json`,
//! which wins and is read again for every line that arrives: write it elsewhere and rename it into place. METHOD may
//! be `*`, for all that are not named. DEATH is `{"code": 3}` or `{"signal": "KILL"}` (101 if neither is given), and may
//! have `"stderr": "text"`.
//!
//! | setting | what happens |
//! |---|---|
//! | `version` `"0.99.0"` | it claims to be of this version |
//! | `exit_at_start` DEATH | it ends before it reads anything |
//! | `start_delay` `"2s"` | it reads nothing before |
//! | `lock_starts` `"200ms"` | it holds a lock for so long before it reads; another one that starts meanwhile fails with `database is locked` |
//! | `stdout_at_start`, `stderr_at_start` TEXT | written first |
//! | `delays` `{METHOD: "2s"}` | it answers so much later; other requests don't wait for it |
//! | `crash_after` `"50ms"` | it dies as `crash` says, so long after its start |
//! | `crash` DEATH | see there |

use std::io::BufRead as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::faults::complain;
use crate::output::or_exit;
use crate::server::Server;
use crate::settings::{Settings, Span};

mod commands;
mod faults;
mod output;
mod requests;
mod script;
mod server;
mod settings;
mod shapes;
mod steps;
mod threads;
mod turn;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let home = std::env::var_os("CODEX_HOME").map(PathBuf::from);
    match (&args[..], home) {
        ([commands::SESSION, command], _) => {
            complain(format!("sh: {}\n", commands::become_session(command)).as_bytes());
            std::process::exit(127);
        }
        (["--version" | "-V", ..], home) => {
            println!("codex-cli {}", Settings::load(home.as_deref()).version());
        }
        (args, Some(home)) if args.contains(&"app-server") => serve(home),
        (_, Some(_)) => {
            complain(b"usage: fake_app_server app-server [-c KEY=VALUE] [--disable FEATURE]\n");
            std::process::exit(2);
        }
        // Never the real one of whoever runs the tests.
        (_, None) => {
            complain(b"fake_app_server: CODEX_HOME is not set\n");
            std::process::exit(64);
        }
    }
}

fn serve(home: PathBuf) -> ! {
    or_exit("CODEX_HOME", std::fs::create_dir_all(&home));
    let settings = Arc::new(Settings::load(Some(&home)));
    let store = or_exit("CODEX_HOME", threads::Store::open(&home));
    let server = Arc::new(Server::new(home, settings, store));
    or_exit("SIGTERM", obey_sigterm());
    begin(&server);
    read_lines(&server)
}

/// The faults that come before the first line is read.
fn begin(server: &Arc<Server>) {
    let settings = server.settings();
    if let Some(text) = &settings.stderr_at_start {
        complain(text.as_bytes());
    }
    if let Some(text) = &settings.stdout_at_start {
        server.output.raw(text.as_bytes());
    }
    if let Some(Span(delay)) = settings.start_delay {
        std::thread::sleep(delay);
    }
    if let Some(death) = &settings.exit_at_start {
        death.die();
    }
    if let Some(Span(time)) = settings.lock_starts {
        match or_exit("CODEX_HOME", faults::lock(&server.home.join("fake-start.lock"))) {
            Some(_lock) => std::thread::sleep(time),
            None => {
                complain(b"Error: failed to initialize sqlite state db: database is locked\n");
                std::process::exit(1);
            }
        }
    }
    if let Some(Span(life)) = settings.crash_after {
        let server = Arc::clone(server);
        std::thread::spawn(move || {
            std::thread::sleep(life);
            server.settings().crash.die();
        });
    }
}

/// Reads requests until their end.
fn read_lines(server: &Arc<Server>) -> ! {
    let mut stdin = std::io::stdin().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = stdin.read_until(b'\n', &mut line);
        server.reload();
        if !matches!(read, Ok(1..)) {
            std::process::exit(0);
        }
        server.take(&line);
    }
}

/// Ends the process as Codex ends.
fn obey_sigterm() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut terminate = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    std::thread::spawn(move || {
        if runtime.block_on(terminate.recv()).is_some() {
            std::process::exit(0);
        }
    });
    Ok(())
}
