//! The caller's credentials: never forwarded, but compared with what the sidecar serves with, so
//! that nobody believes to pay with another key, or to talk to another provider, than is the case.

use super::tell;
use crate::config::key_fingerprint;
use crate::grpc::caller::Caller;
use crate::pb;

/// Where the CLI goes when nobody says otherwise.
const DEFAULT_BASE_URL: &str = "https://api.openai.com/v1";

/// What the caller wants the turn to be run with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    /// A base URL, and where it is said.
    pub(super) base_url: Option<(&'static str, String)>,
    /// A key, in the variable that the SDKs use for one that they were given.
    pub(super) api_key: Option<String>,
}

impl Wanted {
    /// From the environment and from the command line, which wins.
    pub(super) fn of(base_url: Option<String>, env: &dyn Fn(&str) -> Option<String>) -> Wanted {
        let from_flag = base_url.map(|url| ("-c openai_base_url", url));
        let from_env = || env("OPENAI_BASE_URL").map(|url| ("OPENAI_BASE_URL", url));
        Wanted { base_url: from_flag.or_else(from_env), api_key: env("CODEX_API_KEY") }
    }

    fn is_empty(&self) -> bool {
        let Wanted { base_url, api_key } = self;
        base_url.is_none() && api_key.is_none()
    }

    /// What differs from what the sidecar says of itself.
    fn differences(&self, info: &pb::GetServerInfoResponse) -> Vec<String> {
        let Wanted { base_url, api_key } = self;
        let mut differences = Vec::new();
        if let Some((origin, wanted)) = base_url {
            let served = match info.openai_base_url.as_str() {
                "" => DEFAULT_BASE_URL,
                url => url,
            };
            if info.offline_model || !same_url(wanted, served) {
                let served = if info.offline_model { "its built-in offline model" } else { served };
                differences.push(format!(
                    "{origin} ({wanted}) is not forwarded: the sidecar serves with {served}"
                ));
            }
        }
        let other_key =
            api_key.as_deref().is_some_and(|key| info.api_key_fingerprint != key_fingerprint(key));
        if other_key {
            let served = match info.api_key_fingerprint.as_str() {
                "" => "no key from its environment, but with what its CODEX_HOME says",
                _ => "another one",
            };
            differences
                .push(format!("CODEX_API_KEY is not forwarded: the sidecar serves with {served}"));
        }
        differences
    }
}

/// Asks the sidecar, if there is anything to compare, and tells what differs.
pub(super) async fn compare(wanted: Wanted, caller: Caller) {
    if wanted.is_empty() {
        return;
    }
    match caller.get_server_info().await {
        Ok(info) => {
            for difference in wanted.differences(&info) {
                tell(&format!("warning: {difference}"));
            }
        }
        Err(refused) => tell(&format!(
            "warning: the key and the base URL of this environment are not forwarded, and can't be \
             compared with the sidecar's: {}",
            refused.message
        )),
    }
}

fn same_url(one: &str, other: &str) -> bool {
    one.trim().trim_end_matches('/') == other.trim().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let env = |name: &str| match name {
            "OPENAI_BASE_URL" => Some("https://api.openai.com/v1/".to_owned()),
            "CODEX_API_KEY" => Some("sk-canary".to_owned()),
            _ => None,
        };
        let wanted = Wanted::of(None, &env);
        let same = pb::GetServerInfoResponse {
            api_key_fingerprint: key_fingerprint("sk-canary"),
            ..Default::default()
        };
        assert_eq!(wanted.differences(&same), Vec::<String>::new());

        let other = pb::GetServerInfoResponse {
            api_key_fingerprint: key_fingerprint("sk-other"),
            openai_base_url: "http://proxy/v1".to_owned(),
            ..Default::default()
        };
        let told = wanted.differences(&other).join("\n");
        assert!(told.contains("OPENAI_BASE_URL (https://api.openai.com/v1/)"), "{told}");
        assert!(told.contains("http://proxy/v1") && told.contains("CODEX_API_KEY"), "{told}");
        assert!(!told.contains("canary"), "{told}");

        let flag = Wanted::of(Some("http://proxy/v1".to_owned()), &env);
        assert_eq!(flag.differences(&other).len(), 1);
        let offline = pb::GetServerInfoResponse { offline_model: true, ..same };
        assert!(wanted.differences(&offline)[0].contains("offline model"));
        assert!(Wanted::of(None, &|_| None).is_empty());
    }
}
