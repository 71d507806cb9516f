//! Which variables of the sidecar's environment a worker gets, and which of them its commands don't.
//!
//! The one place that says what a worker needs. Whatever else stands in the sidecar's environment is its
//! owner's, and nothing to a worker, whose commands are the model's.

use std::ffi::{OsStr, OsString};

use crate::model::pattern::matches_with_marks;

/// What programs go by that is no secret, and what Codex goes by. `*` stands for any text.
const NEEDED: &[&str] = &[
    // Who, where, in which language.
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TZDIR",
    "TERM",
    "COLORTERM",
    "HOSTNAME",
    "TMPDIR",
    "TMP",
    "TEMP",
    "XDG_*",
    // How the network is reached. Both spellings: programs differ in which one they read.
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    // Where programs and their libraries are.
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CPATH",
    "PKG_CONFIG_PATH",
    "MANPATH",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "GOPATH",
    "GOROOT",
    "GOCACHE",
    "GOMODCACHE",
    "JAVA_HOME",
    "M2_HOME",
    "MAVEN_HOME",
    "GRADLE_HOME",
    "GRADLE_USER_HOME",
    "KOTLIN_HOME",
    "SCALA_HOME",
    "ANDROID_HOME",
    "ANDROID_SDK_ROOT",
    "DOTNET_ROOT",
    "NUGET_PACKAGES",
    "NVM_DIR",
    "NVM_BIN",
    "NODE_PATH",
    "NPM_CONFIG_PREFIX",
    "NPM_CONFIG_CACHE",
    "PNPM_HOME",
    "YARN_CACHE_FOLDER",
    "BUN_INSTALL",
    "DENO_DIR",
    "VOLTA_HOME",
    "PYENV_ROOT",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "PIPX_HOME",
    "PIPX_BIN_DIR",
    "UV_CACHE_DIR",
    "UV_PYTHON_INSTALL_DIR",
    "POETRY_HOME",
    "RBENV_ROOT",
    "GEM_HOME",
    "GEM_PATH",
    "BUNDLE_PATH",
    "COMPOSER_HOME",
    "MIX_HOME",
    "HEX_HOME",
    "OPAMROOT",
    "ASDF_DIR",
    "ASDF_DATA_DIR",
    "MISE_DATA_DIR",
    "CCACHE_DIR",
    "SCCACHE_DIR",
    "HOMEBREW_PREFIX",
    "NIX_PATH",
    "NIX_PROFILES",
    "NIX_SSL_CERT_FILE",
    "LOCALE_ARCHIVE",
    // Codex's own, and its provider's that are no keys.
    "CODEX_HOME",
    "CODEX_SQLITE_HOME",
    "CODEX_CA_CERTIFICATE",
    "CODEX_ACCESS_TOKEN",
    "CODEX_OSS_BASE_URL",
    "CODEX_OSS_PORT",
    "OPENAI_ORGANIZATION",
    "OPENAI_PROJECT",
];

/// What no worker gets, whoever asks for it: how the sidecar is called, and how it tells of itself.
const NEVER: &[&str] = &["CODEX_SIDECAR_*", "OTEL_*"];

/// What commands never see, wherever it comes from.
const SECRET: &[&str] =
    &["CODEX_API_KEY", "OPENAI_API_KEY", "CODEX_ACCESS_TOKEN", "CODEX_SIDECAR_TOKEN*"];

const PROXIES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY"];

/// The part of an environment that a worker gets: what it needs, what its configuration names, and what
/// the owner adds by name or pattern.
pub(crate) fn passed(
    environment: impl Iterator<Item = (OsString, OsString)>,
    named: &[String],
    added: &[String],
) -> Vec<(OsString, OsString)> {
    environment.filter(|(name, _)| is_passed(name, named, added)).collect()
}

fn is_passed(name: &OsStr, named: &[String], added: &[String]) -> bool {
    let Some(name) = name.to_str() else { return false };
    if is_kept_back(name) {
        return false;
    }
    NEEDED.iter().any(|pattern| matches_with_marks(pattern, name))
        || named.iter().any(|named| named == name)
        || added.iter().any(|pattern| matches_with_marks(pattern, name))
}

/// Whether no worker gets what has this name.
pub(crate) fn is_kept_back(name: &str) -> bool {
    NEVER.iter().any(|pattern| matches_with_marks(pattern, name))
}

/// The names of what commands must not see of a worker's environment, where the worker's configuration
/// takes keys from the variables `sources`. What is not there is named, too: a command's login shell
/// reads files, and so does the next worker.
pub(crate) fn hidden(environment: &[(OsString, OsString)], sources: Vec<String>) -> Vec<String> {
    let proxies = environment.iter().filter_map(|(name, value)| {
        let (name, value) = (name.to_str()?, value.to_str()?);
        (is_proxy(name) && credentials(value).is_some()).then(|| name.to_owned())
    });
    let mut names: Vec<String> = SECRET.iter().map(|name| (*name).to_owned()).collect();
    names.extend(sources);
    names.extend(proxies);
    names.sort_unstable();
    names.dedup();
    names
}

/// The passwords for proxies that stand in an environment.
pub(crate) fn proxy_passwords(environment: &[(OsString, OsString)]) -> Vec<String> {
    let proxies = environment.iter().filter(|(name, _)| name.to_str().is_some_and(is_proxy));
    let credentials = proxies.filter_map(|(_, value)| credentials(value.to_str()?));
    // A user without a password may be a token.
    credentials
        .map(|it| it.split_once(':').map_or(it, |(_, password)| password).to_owned())
        .collect()
}

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

/// What stands before the host of a URL: `http://user:password@proxy:3128`.
fn credentials(url: &str) -> Option<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.rsplit_once('@').map(|(credentials, _)| credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn names(variables: &[(&str, &str)], named: &[&str], added: &[&str]) -> Vec<String> {
        let owned =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let passed = passed(environment(variables).into_iter(), &owned(named), &owned(added));
        passed.into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_worker_gets_what_it_needs_and_what_is_named_and_nothing_else() {
        let all = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("https_proxy", "x"),
            ("CARGO_HOME", "/c"),
            ("OPENAI_API_KEY", "k"),
            ("MY_KEY", "k"),
            ("DB_PASSWORD", "p"),
            ("RUST_LOG", "trace"),
            ("AWS_REGION", "r"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("CODEX_SIDECAR_TOKEN", "t"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "h"),
            ("SSH_AUTH_SOCK", "/s"),
            ("path", "no"),
        ];
        let always = ["PATH", "LC_ALL", "https_proxy", "CARGO_HOME"];
        assert_eq!(names(&all, &[], &[]), always);
        assert_eq!(names(&all, &["MY_KEY"], &[]), [&always[..], &["MY_KEY"]].concat());
        let added = names(&all, &[], &["AWS_*", "DB_PASSWOR?"]);
        let expected = ["DB_PASSWORD", "AWS_REGION", "AWS_SECRET_ACCESS_KEY"];
        assert_eq!(added, [&always[..], &expected].concat());
        let everything =
            names(&all, &["CODEX_SIDECAR_TOKEN"], &["*", "OTEL_EXPORTER_OTLP_HEADERS"]);
        assert_eq!(everything.len(), all.len() - 2, "{everything:?}");
        assert!(everything.iter().all(|name| !is_kept_back(name)));
    }

    #[test]
    fn commands_see_neither_a_key_nor_a_proxys_password() {
        let environment = environment(&[
            ("https_proxy", "http://me:pw-canary@proxy:3128/"),
            ("HTTP_PROXY", "http://proxy:3128/a@b"),
            ("ALL_PROXY", "token-canary@proxy"),
            ("NO_PROXY", "a@b"),
        ]);
        let hidden = hidden(&environment, vec!["MY_KEY".to_owned(), "OPENAI_API_KEY".to_owned()]);
        assert_eq!(
            hidden,
            [
                "ALL_PROXY",
                "CODEX_ACCESS_TOKEN",
                "CODEX_API_KEY",
                "CODEX_SIDECAR_TOKEN*",
                "MY_KEY",
                "OPENAI_API_KEY",
                "https_proxy",
            ]
        );
        assert_eq!(proxy_passwords(&environment), ["pw-canary", "token-canary"]);
    }
}
