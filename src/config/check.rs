//! Faults that no single value has.

use std::time::Duration;

use super::load::join;
use super::{Config, Fault, Origins};

/// What is wrong with `client_names` alone.
pub(super) const NAMES_NEED_A_CA: &str =
    "needs tls_client_ca at the top level, too: without it no client shows a certificate";

/// Where the value of this key comes from.
pub(crate) fn origin(origins: &Origins, key: &str) -> String {
    match origins.get(key) {
        Some(origin) => origin.to_string(),
        None => format!("{key} (default)"),
    }
}

/// Values of one place that contradict each other: at the top level, or in the tenant's table at `at`,
/// which has the top level's where it says nothing.
pub(super) fn together(config: &Config, at: &str, origins: &Origins, faults: &mut Vec<Fault>) {
    let is_said = |key: &str| {
        let own = join(at, key);
        if origins.contains_key(&own) { Some(own) } else { None }
    };
    let origin = |key: &str| match is_said(key) {
        Some(own) => self::origin(origins, &own),
        None => self::origin(origins, key),
    };
    let tls = &config.tls;
    let pairs = [
        ("tls_cert", &tls.cert, "tls_key", &tls.key),
        ("tls_key", &tls.key, "tls_cert", &tls.cert),
        ("tls_client_ca", &tls.client_ca, "tls_cert", &tls.cert),
    ];
    for (name, given, other, missing) in pairs {
        if let (Some(given), None) = (given, missing) {
            faults.push(Fault {
                origin: origin(name),
                value: given.display().to_string(),
                problem: format!(
                    "needs {other}, too (--{}): a certificate is of no use without its key, nor a key \
                     or the authorities of clients without a certificate",
                    other.replace('_', "-")
                ),
            });
        }
    }
    if config.client_names.is_some() && tls.client_ca.is_none() {
        faults.push(Fault {
            origin: origin("client_names"),
            value: String::new(),
            problem: NAMES_NEED_A_CA.to_owned(),
        });
    }
    let show = |duration: Duration| humantime::format_duration(duration).to_string();

    let timeouts = &config.timeouts;
    let maxima = [
        ("turn", timeouts.turn, timeouts.max_turn),
        // By default it is whatever a maximum leaves of it.
        (
            "idle",
            timeouts.idle.filter(|_| {
                is_said("timeouts.idle").is_some() || origins.contains_key("timeouts.idle")
            }),
            timeouts.max_idle,
        ),
        ("answer", timeouts.answer, timeouts.max_answer),
    ];
    for (name, value, maximum) in maxima {
        let (Some(value), Some(maximum)) = (value, maximum) else {
            continue;
        };
        if value > maximum {
            faults.push(Fault {
                origin: origin(&format!("timeouts.{name}")),
                value: show(value),
                problem: format!("wants at most timeouts.max_{name}, which is {}", show(maximum)),
            });
        }
    }
    for (tool, defaults) in &config.tools {
        let given = [defaults.turn_timeout, defaults.idle_timeout, defaults.answer_timeout];
        for ((name, _, maximum), value) in maxima.into_iter().zip(given) {
            let (Some(value), Some(maximum)) = (value, maximum) else {
                continue;
            };
            if value > maximum {
                faults.push(Fault {
                    origin: origin(&format!("tools.{tool}.{name}_timeout")),
                    value: show(value),
                    problem: format!(
                        "wants at most timeouts.max_{name}, which is {}",
                        show(maximum)
                    ),
                });
            }
        }
    }
    let retention = &config.retention;
    if retention.max_bytes < retention.max_bytes_per_turn {
        faults.push(Fault {
            origin: origin("retention.max_bytes"),
            value: retention.max_bytes.to_string(),
            problem: format!(
                "wants at least retention.max_bytes_per_turn, which is {}",
                retention.max_bytes_per_turn
            ),
        });
    }
    let pool = &config.pool;
    if pool.backoff_max < pool.backoff_initial {
        faults.push(Fault {
            origin: origin("pool.backoff_max"),
            value: show(pool.backoff_max),
            problem: format!(
                "wants at least pool.backoff_initial, which is {}",
                show(pool.backoff_initial)
            ),
        });
    }
}
