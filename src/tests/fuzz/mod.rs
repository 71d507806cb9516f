//! What parsers of foreign bytes do with bytes that nobody would send in good faith.
//!
//! Each [`Target`] is a parser with what holds of it for every input: that it returns is the least, and
//! where something comes back as it went, or is never longer than it may be, that is asserted. A loop
//! drives all of them with inputs that are bred from seeds ([`mutation`]), on stable and in one test:
//!
//! ```sh
//! cargo test --lib fuzz                                  # some 10,000 inputs
//! CODEX_SIDECAR_FUZZ=60s cargo test --lib fuzz           # a minute over all of them, as in CI
//! CODEX_SIDECAR_FUZZ=10000000 cargo test --lib fuzz -- --nocapture
//! ```
//!
//! What fails is told with its input, as short as it could be made, and with `BOLERO_RANDOM_SEED`, which
//! makes it again. A new parser of foreign bytes is a new line among the targets of its kind of source.

mod app_server;
mod command_line;
mod files;
mod kept;
mod mutation;
#[cfg(feature = "offline-model")]
mod offline_model;
mod requests;

use std::fmt;
use std::panic::catch_unwind;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bolero::ValueGenerator as _;
use serde_json::Value;

/// Panics where a parser does not keep its word.
type Holds = fn(&[u8]);

/// A parser of foreign bytes.
struct Target {
    name: &'static str,
    /// What it is well used to.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Panics where something does not hold.
    holds: Holds,
    /// How much of the inputs it gets beside the others: what is slow gets less.
    share: u32,
}

const TARGETS: &[&[Target]] = &[
    app_server::TARGETS,
    requests::TARGETS,
    files::TARGETS,
    kept::TARGETS,
    command_line::TARGETS,
    #[cfg(feature = "offline-model")]
    offline_model::TARGETS,
];

/// How much is done.
#[derive(Debug, Clone, Copy)]
enum Effort {
    /// So many inputs over all targets.
    Inputs(usize),
    /// So long over all targets.
    Time(Duration),
}

impl Effort {
    /// What CODEX_SIDECAR_FUZZ says, a number or a duration.
    fn of(said: Option<&str>) -> Effort {
        match said {
            None => Effort::Inputs(300 * targets().count()),
            Some(said) => match (said.parse(), humantime::parse_duration(said)) {
                (Ok(inputs), _) => Effort::Inputs(inputs),
                (Err(_), Ok(time)) => Effort::Time(time),
                (Err(_), Err(_)) => panic!("CODEX_SIDECAR_FUZZ is {said:?}; give 1000000 or 60s"),
            },
        }
    }
}

fn targets() -> impl Iterator<Item = &'static Target> {
    TARGETS.iter().copied().flatten()
}

/// An input, as a person can read it.
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "b\"{}\"", self.0.escape_ascii())
    }
}

/// What came of a target.
#[derive(Default)]
struct Driven {
    inputs: usize,
    /// How long the slowest took, and what it was.
    slowest: (Duration, Vec<u8>),
}

/// Drives a target with so many inputs, or so long. Panics where it does not hold.
fn drive(target: &Target, inputs: usize, time: Duration) -> Driven {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    // As they are, they hold too.
    seeds.iter().for_each(|seed| (target.holds)(seed));
    let scripts = bolero::generator::produce::<Vec<u8>>().with().len(0_usize..48);
    let made = scripts.map_gen(|script| Input(mutation::input(&seeds, &script)));
    let driven = Mutex::new(Driven::default());
    // The macro returns where a fuzzer from outside looks for another test.
    let run = || {
        bolero::check!()
            .with_generator(made)
            .with_iterations(inputs)
            .with_test_time(time)
            .with_shrink_time(Duration::from_secs(5))
            .for_each(|Input(input): &Input| {
                let began = Instant::now();
                (target.holds)(input);
                let took = began.elapsed();
                let mut driven = driven.lock().unwrap_or_else(PoisonError::into_inner);
                driven.inputs += 1;
                if took > driven.slowest.0 {
                    driven.slowest = (took, input.clone());
                }
            });
    };
    run();
    driven.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn whatever_comes_every_parser_of_foreign_bytes_returns_and_keeps_its_word() {
    let said = std::env::var("CODEX_SIDECAR_FUZZ").ok();
    let effort = Effort::of(said.as_deref());
    let shares: u32 = targets().map(|target| target.share).sum();
    let began = Instant::now();
    let mut all = 0;
    for target in targets() {
        let share = f64::from(target.share) / f64::from(shares);
        let (inputs, time) = match effort {
            // Rounded up: none gets nothing.
            Effort::Inputs(inputs) => ((inputs as f64 * share) as usize + 1, Duration::MAX),
            Effort::Time(time) => (usize::MAX, time.mul_f64(share)),
        };
        let Driven { inputs, slowest: (took, input) } = drive(target, inputs, time);
        let start = Input(input[..input.len().min(60)].to_vec());
        println!("{:28} {inputs:9} inputs, the slowest {took:?}: {start:?}", target.name);
        all += inputs;
    }
    println!("{all} inputs in {:?}", began.elapsed());
}

#[test]
fn the_loop_finds_what_is_planted() {
    let planted_seeds = || {
        let line = r#"{"method":"m","params":{"item":{"type":"plan","id":"ä"},"threadId":"t"}}"#;
        vec![line.as_bytes().to_vec()]
    };
    // Each has to be reached through what the seed is already.
    let planted: [(&str, Holds); 3] = [
        ("a value of the wrong kind", |input| {
            let line: Value = serde_json::from_slice(input).unwrap_or_default();
            assert!(!line["params"]["item"]["id"].is_array(), "planted");
        }),
        ("brackets without an end", |input| {
            let line: Value = serde_json::from_slice(input).unwrap_or_default();
            assert!(line.to_string().matches("[[[[[[[[[[[[[[[[").count() == 0, "planted");
        }),
        ("a character that is cut", |input| {
            let is_right = std::str::from_utf8(input).is_ok();
            let is_cut = |error: std::str::Utf8Error| error.error_len().is_none();
            assert!(is_right || !std::str::from_utf8(input).is_err_and(is_cut), "planted");
        }),
    ];
    for (name, holds) in planted {
        let target = Target { name, seeds: planted_seeds, holds, share: 100 };
        let found = catch_unwind(|| drive(&target, 200_000, Duration::from_secs(60)));
        assert!(found.is_err(), "{name} was not found");
    }
    // And it finds nothing where there is nothing.
    let target = Target { name: "nothing", seeds: || vec![vec![1]], holds: |_| {}, share: 100 };
    assert_eq!(drive(&target, 500, Duration::MAX).inputs, 500);
}

#[test]
fn how_much_is_done_is_said_as_a_number_or_a_time() {
    assert!(matches!(Effort::of(Some("10000000")), Effort::Inputs(10_000_000)));
    assert!(matches!(Effort::of(Some("60s")), Effort::Time(time) if time.as_secs() == 60));
    assert!(catch_unwind(|| Effort::of(Some("long"))).is_err());
}
