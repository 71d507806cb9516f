//! One policy, held against another: a tool's may say less than what holds for all, and never more.

use std::path::PathBuf;

use serde::Serialize;

use super::{Policy, word};
use crate::model::pattern::matches;

impl Policy {
    /// Where this policy allows more than `outer`: each key of it, and what it would have to be.
    pub(crate) fn wider_than(&self, outer: &Policy) -> Vec<(&'static str, String)> {
        // All by name: a new one has to be compared.
        let Policy {
            max_sandbox_mode,
            permission_profiles,
            approval_policies,
            approvals_reviewers,
            network_access,
            max_web_search,
            models,
            roots,
            config_keys,
            environment,
            dynamic_tools,
            images,
            own: _,
        } = self;
        let mut wider = Vec::new();
        let mut note = |key: &'static str, wanted: Option<String>| {
            wider.extend(wanted.map(|wanted| (key, wanted)));
        };
        note("max_sandbox_mode", above(*max_sandbox_mode, outer.max_sandbox_mode));
        note("permission_profiles", beyond(permission_profiles, &outer.permission_profiles));
        note("approval_policies", outside(approval_policies, &outer.approval_policies));
        note("approvals_reviewers", outside(approvals_reviewers, &outer.approvals_reviewers));
        note("network_access", above(*network_access, outer.network_access));
        note("max_web_search", above(*max_web_search, outer.max_web_search));
        note("models", beyond(models, &outer.models));
        note("roots", out_of(roots, &outer.roots));
        note("config_keys", uncovered(config_keys, &outer.config_keys));
        note("environment", uncovered(environment, &outer.environment));
        note("dynamic_tools", above(*dynamic_tools, outer.dynamic_tools));
        note("images", above(*images, outer.images));
        wider
    }
}

fn above<T: PartialOrd + Serialize>(own: T, outer: T) -> Option<String> {
    (own > outer).then(|| format!("wants at most {}", word(&outer)))
}

fn outside<T: PartialEq + Serialize>(
    own: &Option<Vec<T>>,
    outer: &Option<Vec<T>>,
) -> Option<String> {
    let (own, outer) = (own.as_ref()?, outer.as_ref()?);
    let is_in = own.iter().all(|one| outer.contains(one));
    (!is_in).then(|| {
        let outer: Vec<String> = outer.iter().map(word).collect();
        format!("wants none but {}", outer.join(", "))
    })
}

fn beyond(own: &Option<Vec<String>>, outer: &Option<Vec<String>>) -> Option<String> {
    uncovered(own.as_ref()?, outer.as_ref()?)
}

/// A pattern is covered by one that matches it as a name.
fn uncovered(own: &[String], outer: &[String]) -> Option<String> {
    let is_covered = |one: &String| outer.iter().any(|pattern| matches(pattern, one));
    (!own.iter().all(is_covered)).then(|| match outer {
        [] => "wants none".to_owned(),
        outer => format!("wants nothing but what is in {}", outer.join(", ")),
    })
}

fn out_of(own: &Option<Vec<PathBuf>>, outer: &Option<Vec<PathBuf>>) -> Option<String> {
    let (own, outer) = (own.as_ref()?, outer.as_ref()?);
    let is_in = own.iter().all(|one| outer.iter().any(|root| one.starts_with(root)));
    (!is_in).then(|| {
        let outer: Vec<String> = outer.iter().map(|root| root.display().to_string()).collect();
        format!("wants directories in {}", outer.join(", "))
    })
}
