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
//! | `json VALUE` * | an agent message of exactly that JSON |
//! | `words N` * | an agent message `w1 w2 … wN`, one delta per word |
//! | `bytes N` * | an agent message of N bytes (`0123456789abcdef…`), in deltas of up to 64 KiB |
//! | `items N BYTES` * | N agent messages of BYTES bytes each |
//! | `show POINTER` * | an agent message with the JSON at this pointer into the parameters of `turn/start`: `/sandboxPolicy`; nothing means all |
//! | `settings` * | an agent message with the settings that the thread has by now, those of earlier turns that stuck included |
//! | `ask METHOD {…}` * | a request to the client, waited for; an agent message says what came back (`METHOD was answered: …`, `METHOD was refused: …`). Codex's own methods have all their parameters, of which the JSON replaces some (`{"threadId": null}`); it may be left out. `ask-and-wait` is the same |
//! | `ask-and-go METHOD {…}` | the same, and the turn does not wait |
//! | `ask-and-withdraw METHOD {…}` | the same, and `serverRequest/resolved` takes it back at once |
//! | `reason TEXT` | a reasoning item with a streamed summary |
//! | `plan A; B; C` | `turn/plan/updated`: A completed, B in progress, the rest pending |
//! | `command STATUS`, `filechange STATUS`, `mcp STATUS` | such an item, begun and ended with this status (`completed` if none is given, `failed`, `declined`, …); only begun with `inProgress`. Nothing is done |
//! | `run COMMAND` | a real command, waited for; its output is told |
//! | `spawn COMMAND` | a real command, not waited for |
//! | `spawn-holding COMMAND` | the same; it keeps this process's stdout and stderr open |
//! | `wait MS` | a pause |
//! | `hang` | silence from here on, until an interruption |
//! | `other-threads` | from here on, every 20 ms, news of another thread and none of this one |
//! | `retry N`, `retry-forever` | every 50 ms an `error` with `willRetry` |
//! | `warn TEXT` | a `warning` |
//! | `usage IN OUT` | the tokens of this turn, as told at its end |
//! | `unknown-item`, `unknown-notification` | an item `hologram`; a notification `thread/hologram` |
//! | `unknown-shape` | known methods with parameters of the wrong shape |
//! | `wrong-turn-id` | a whole turn of this thread under an id that nobody knows, which fails |
//! | `garbage N` | N lines that are no message: in turn a blank one, no UTF-8, half a JSON, a text, `{}`, `[1,2,3]` |
//! | `line N` | a `turn/diff/updated` whose line has exactly N bytes |
//! | `half-line` | the first half of a line, without its end; what follows is written right behind it |
//! | `garbage-line N` | a line of exactly N bytes that is no message |
//! | `endless-line` | a line that never ends; the process writes nothing else any more |
//! | `split`, `split N` | from here on, this turn's lines are written N bytes at a time, 1 if none is given |
//! | `stderr N` | N bytes on stderr, in lines of 64 |
//! | `stderr-line N` | one line of N bytes there |
//! | `stderr-text TEXT` | this line there |
//! | `grow N` | N MiB of memory more, for good |
//! | `wedge` | the whole process answers and tells nothing any more, and goes on reading |
//! | `stop-reading` | the process handles no line after this, nor reads any |
//! | `close-stdout` | the process gives up its stdout, and lives on |
//! | `die HOW` | the process ends here |
//! | `fail INFO MESSAGE` | the turn fails with this `codexErrorInfo`: a name (`usageLimitExceeded`) or JSON |
//!
//! These hold for the whole turn, wherever they stand:
//!
//! | what it says | what happens |
//! |---|---|
//! | `slow MS` | a pause between deltas |
//! | `silent` | `turn/start` is answered, and nothing follows until an interruption |
//! | `die-before-answer HOW` | the process reads `turn/start`, and ends |
//! | `refuse CODE MESSAGE` | `turn/start` is answered with this error |
//! | `no-answer` | `turn/start` is not answered; the turn runs |
//! | `early` | `turn/start` is answered after the end of the turn |
//! | `no-end` | `turn/completed` is left out, whatever the end was; the thread is idle then |
//! | `double-end` | `turn/completed` comes twice |
//! | `late`, `late N` | N agent messages of this turn (1) after its end |
//! | `ignore-interrupt` | `turn/interrupt` is answered, and the turn goes on |
//! | `slow-interrupt MS` | an interrupted turn ends so much later |
//! | `unasked`, `unasked N` | at the end of the turn the process begins N turns (1) of its own on the thread, one after the other, each of 100 tokens in and 10 out, and each until it is interrupted |
//! | `unasked-deaf` | the same, and an interruption does not end them |
//! | `unasked-told-over` | the same, and each is told as over as soon as it has begun |
//! | `stray` | at the end of the turn, `turn/started` on a thread that nobody knows |
//!
//! # Settings
//!
//! A setting is the variable `FAKE_NAME` (JSON; what is no JSON is a text) or the key `name` of `CODEX_HOME/fake.json`,
//! which wins and is read again for every line that arrives: write it elsewhere and rename it into place. METHOD may
//! be `*`, for all that are not named. DEATH is `{"code": 3}` or `{"signal": "KILL"}` (101 if neither is given), and may
//! have `"stderr": "text"` and `"times": N`. Whatever is limited to the first N times is counted for all processes of
//! the CODEX_HOME together, in `CODEX_HOME/fake-counters/`; remove a file there to begin anew.
//!
//! | setting | what happens |
//! |---|---|
//! | `version` `"0.99.0"` | it claims to be of this version |
//! | `user_agent` TEXT | the whole user agent |
//! | `per_start` `{"1": {…}, "2-4": {…}, "5-": {…}}` | settings for the first, second… process that was started on this CODEX_HOME, over all others |
//! | `exit_at_start` DEATH | it ends before it reads anything; with `times`, only the first so many starts fail |
//! | `start_delay` `"2s"` | it reads nothing before |
//! | `lock_starts` `"200ms"` | it holds a lock for so long before it reads; another one that starts meanwhile fails with `database is locked` |
//! | `stdout_at_start`, `stderr_at_start` TEXT | written first |
//! | `helper` COMMAND | it starts this and leaves it alone, in its own process group, as Codex does with MCP servers |
//! | `errors` `{METHOD: {"code": -32600, "message": "no", "data": …, "times": N}}` | it answers with this error |
//! | `overload` `{METHOD: N}` | it answers the first N of them with -32001 |
//! | `answers` `{METHOD: JSON}` | it answers with this result, and does nothing |
//! | `raw_answers` `{METHOD: "line"}` | it writes this line (`$id` is the request's id), and does nothing |
//! | `delays` `{METHOD: "2s"}` | it answers so much later; other requests don't wait for it |
//! | `mute` `[METHOD]` | it does not answer, and does nothing |
//! | `imposes` `{METHOD: {"sandboxPolicy": …}}` | it takes these parameters in place of those that are sent; null takes one away, as if it did not know it |
//! | `tells_no_settings` `true` | it knows neither `thread/settings/update` and `permissionProfile/list` nor `thread/settings/updated`, like CLIs before 0.150 |
//! | `die_on` `{METHOD: DEATH}` | it ends when it reads this request |
//! | `wedge` `true` | it answers and tells nothing; with `false` again, what its turns had to tell comes |
//! | `stop_reading_after` N | it handles the first N lines (a whole handshake has five), then reads no more |
//! | `close_stdout_after` N | it gives up its stdout after the first N lines |
//! | `crash_after_turns` N | it dies as `crash` says when its N-th turn has ended |
//! | `crash_after` `"50ms"` | it dies as `crash` says, so long after its start |
//! | `crash` DEATH | see there |
//! | `ignore_eof`, `ignore_sigterm` `true` | the end of its input, or SIGTERM, does not end it |
//! | `grow_mib` N | every turn makes it so much larger |
//! | `script` TEXT | put before every prompt's directives |
//!
//! # Traces
//!
//! With a file `CODEX_HOME/fake-log` there, every line that is read goes to `CODEX_HOME/fake-<pid>.log`, after a first
//! line `{"start": N, "args": […]}`. `CODEX_HOME/fake-counters/starts` tells how many processes were started, and
//! `CODEX_HOME/fake-threads/<id>.jsonl` what a thread was told.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::faults::{Counters, complain};
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
            println!("codex-cli {}", Settings::load(home.as_deref(), 0).version());
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
    let counters = Counters { directory: home.join("fake-counters") };
    let start = or_exit("CODEX_HOME", counters.next("starts"));
    let settings = Arc::new(Settings::load(Some(&home), start));
    let store = or_exit("CODEX_HOME", threads::Store::open(&home));
    let server = Arc::new(Server::new(home, start, settings, counters, store));
    or_exit("SIGTERM", obey_sigterm(Arc::clone(&server)));
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
        server.output.raw(text.as_bytes(), None);
    }
    if let Some(Span(delay)) = settings.start_delay {
        std::thread::sleep(delay);
    }
    if let Some(death) = &settings.exit_at_start {
        server.die_if_due("exit_at_start", death);
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
    if let Some(command) = &settings.helper {
        or_exit("helper", commands::start_helper(command));
    }
    if let Some(Span(life)) = settings.crash_after {
        let server = Arc::clone(server);
        std::thread::spawn(move || {
            std::thread::sleep(life);
            server.die_if_due("crash", &server.settings().crash);
        });
    }
}

/// Reads requests until their end, or until it is told to read no more.
fn read_lines(server: &Arc<Server>) -> ! {
    let mut stdin = std::io::stdin().lock();
    let mut log = Log::open(&server.home, server.start);
    let mut lines = 0;
    let mut line = Vec::new();
    loop {
        stop_if_told(server, lines);
        line.clear();
        let read = stdin.read_until(b'\n', &mut line);
        let settings = server.reload();
        if !matches!(read, Ok(1..)) {
            if settings.ignore_eof {
                stop_reading();
            }
            std::process::exit(0);
        }
        log.write(&line);
        // It may have been told so while it waited for this line.
        stop_if_told(server, lines);
        lines += 1;
        server.take(&line);
        if settings.close_stdout_after == Some(lines) {
            server.output.close();
        }
    }
}

fn stop_if_told(server: &Server, lines: u64) {
    let after = server.settings().stop_reading_after;
    if after.is_some_and(|after| lines >= after) || server.stopped_reading.load(Ordering::SeqCst) {
        stop_reading();
    }
}

fn stop_reading() -> ! {
    loop {
        std::thread::park();
    }
}

/// Ends the process as Codex ends, unless it is to stay.
fn obey_sigterm(server: Arc<Server>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut terminate = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    std::thread::spawn(move || {
        while runtime.block_on(terminate.recv()).is_some() {
            if !server.reload().ignore_sigterm {
                std::process::exit(0);
            }
        }
    });
    Ok(())
}

/// What was received, for tests that look at it.
struct Log {
    path: PathBuf,
    switch: PathBuf,
    head: String,
}

impl Log {
    fn open(home: &Path, start: u64) -> Log {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let head = serde_json::json!({ "start": start, "args": args });
        Log {
            path: home.join(format!("fake-{}.log", std::process::id())),
            switch: home.join("fake-log"),
            head: format!("{head}\n"),
        }
    }

    fn write(&mut self, line: &[u8]) {
        if self.switch.exists() {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path);
            let head = std::mem::take(&mut self.head);
            let _ = file.and_then(|mut file| file.write_all(&[head.as_bytes(), line].concat()));
        }
    }
}
