use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::model::options::{DynamicTool, ThreadOptions};
use crate::model::question::{
    Answer, ApprovalAnswer, ApprovalDecision, ElicitationAnswer, NetworkPolicyAmendment,
    PermissionsAnswer,
};
use crate::model::refusal::Faults;
use crate::model::request::UserInput;

fn denied_of(policy: &Policy, options: &ThreadOptions) -> Vec<(String, String)> {
    let mut denied = Faults::default();
    policy.judge("thread_options.", options, &mut denied);
    denied.0.into_iter().map(|denied| (denied.field, denied.description)).collect()
}

fn fields(policy: &Policy, options: &ThreadOptions) -> Vec<String> {
    denied_of(policy, options).into_iter().map(|(field, _)| field).collect()
}

fn settled(policy: &Policy, options: ThreadOptions) -> ThreadOptions {
    let mut settled = options;
    policy.settle(&mut settled);
    settled
}

fn lent() -> Option<Vec<DynamicTool>> {
    let (name, description) = ("f".to_owned(), String::new());
    Some(vec![DynamicTool { name, description, input_schema: json!({}) }])
}

fn profile(name: &str) -> ThreadOptions {
    ThreadOptions { permission_profile: Some(name.to_owned()), ..ThreadOptions::default() }
}

fn sandbox(mode: SandboxMode) -> ThreadOptions {
    ThreadOptions { sandbox_mode: Some(mode), ..ThreadOptions::default() }
}

#[test]
fn without_a_word_of_the_configuration_nothing_is_denied_and_nothing_settled() {
    let policy = Policy::default();
    let all = ThreadOptions {
        sandbox_mode: Some(SandboxMode::DangerFullAccess),
        network_access_enabled: Some(true),
        web_search_mode: Some(WebSearchMode::Live),
        approval_policy: Some(ApprovalPolicy::Never),
        approvals_reviewer: Some(ApprovalsReviewer::AutoReview),
        model: Some("m".to_owned()),
        dynamic_tools: lent(),
        ..ThreadOptions::default()
    };
    assert_eq!(fields(&policy, &all), Vec::<String>::new());
    assert_eq!(fields(&policy, &profile("mine")), Vec::<String>::new());
    assert_eq!(settled(&policy, ThreadOptions::default()), ThreadOptions::default());
}

/// Each ceiling: what is above it, what is below, and what holds where nobody says anything.
#[test]
fn what_is_above_a_ceiling_is_denied_and_below_it_the_least_holds() {
    use SandboxMode::{DangerFullAccess, ReadOnly, WorkspaceWrite};
    let none = ThreadOptions::default;
    let policy = Policy::default;
    let search = |mode| ThreadOptions { web_search_mode: Some(mode), ..none() };
    let approval = |asked| ThreadOptions { approval_policy: Some(asked), ..none() };
    let reviewer = |asked| ThreadOptions { approvals_reviewer: Some(asked), ..none() };
    let model = |name: &str| ThreadOptions { model: Some(name.to_owned()), ..none() };
    let read_only = Policy { max_sandbox_mode: ReadOnly, ..policy() };
    let workspace = Policy { max_sandbox_mode: WorkspaceWrite, ..policy() };
    let offline = Policy { network_access: false, ..policy() };
    let network = |on| ThreadOptions { network_access_enabled: Some(on), ..none() };
    let listed = Policy {
        permission_profiles: Some(vec!["team-*".to_owned(), ":workspace".to_owned()]),
        ..policy()
    };
    let never = Policy { approval_policies: Some(vec![ApprovalPolicy::Never]), ..policy() };
    let asking = Policy { approval_policies: Some(vec![ApprovalPolicy::OnRequest]), ..policy() };
    let reviewed =
        Policy { approvals_reviewers: Some(vec![ApprovalsReviewer::AutoReview]), ..policy() };
    let cached = Policy { max_web_search: WebSearchMode::Cached, ..policy() };
    let no_search = Policy { max_web_search: WebSearchMode::Disabled, ..policy() };
    let models = Policy { models: Some(vec!["gpt-5*".to_owned()]), ..policy() };
    let no_loans = Policy { dynamic_tools: false, ..policy() };
    let legacy = ThreadOptions { web_search_enabled: Some(true), ..none() };
    let indexed =
        ThreadOptions { config: json!({ "web_search": "indexed" }).as_object().cloned(), ..none() };

    let user = ApprovalsReviewer::User;
    for (policy, above, field, key) in [
        (&read_only, sandbox(WorkspaceWrite), "sandbox_mode", "max_sandbox_mode"),
        (&read_only, profile(":workspace"), "permission_profile", "max_sandbox_mode"),
        (&read_only, profile("mine"), "permission_profile", "max_sandbox_mode"),
        (
            &read_only,
            reviewer(ApprovalsReviewer::AutoReview),
            "approvals_reviewer",
            "max_sandbox_mode",
        ),
        (&workspace, sandbox(DangerFullAccess), "sandbox_mode", "max_sandbox_mode"),
        (&workspace, profile(":danger-full-access"), "permission_profile", "max_sandbox_mode"),
        (&offline, network(true), "network_access_enabled", "network_access"),
        (&offline, sandbox(DangerFullAccess), "sandbox_mode", "network_access"),
        (&offline, profile(":danger-full-access"), "permission_profile", "network_access"),
        (&offline, profile("mine"), "permission_profile", "network_access"),
        (&listed, profile("other"), "permission_profile", "permission_profiles"),
        (&listed, profile(":read-only"), "permission_profile", "permission_profiles"),
        (&never, approval(ApprovalPolicy::OnFailure), "approval_policy", "approval_policies"),
        (&reviewed, reviewer(user), "approvals_reviewer", "approvals_reviewers"),
        (&cached, search(WebSearchMode::Live), "web_search_mode", "max_web_search"),
        (&cached, legacy, "web_search_enabled", "max_web_search"),
        (&cached, indexed, "config[\"web_search\"]", "max_web_search"),
        (&no_search, search(WebSearchMode::Cached), "web_search_mode", "max_web_search"),
        (&models, model("gpt-4"), "model", "models"),
        (
            &no_loans,
            ThreadOptions { dynamic_tools: lent(), ..none() },
            "dynamic_tools",
            "dynamic_tools",
        ),
    ] {
        let denied = denied_of(policy, &above);
        let [(path, fault)] = denied.as_slice() else { panic!("{field}, {key}: {denied:?}") };
        assert_eq!(*path, format!("thread_options.{field}"));
        assert!(fault.contains(&format!("[policy] {key}")), "{fault}");
    }

    for (policy, below) in [
        (&read_only, sandbox(ReadOnly)),
        (&read_only, profile(":read-only")),
        (&read_only, reviewer(user)),
        (&workspace, sandbox(WorkspaceWrite)),
        (&workspace, profile(":workspace")),
        (&offline, sandbox(WorkspaceWrite)),
        (&offline, network(false)),
        (&listed, profile("team-a")),
        (&listed, profile(":workspace")),
        (&never, approval(ApprovalPolicy::Never)),
        (&asking, approval(ApprovalPolicy::OnFailure)),
        (&cached, search(WebSearchMode::Cached)),
        (&models, model("gpt-5-mini")),
        (&no_loans, ThreadOptions { dynamic_tools: Some(Vec::new()), ..none() }),
    ] {
        assert_eq!(denied_of(policy, &below), Vec::new());
        // What was said stays.
        let kept = settled(policy, below.clone());
        let expected = below.clone().or(&settled(policy, none()));
        assert_eq!(kept.sandbox_mode, expected.sandbox_mode);
        assert_eq!(kept.permission_profile, below.permission_profile);
        assert_eq!(kept.approval_policy, expected.approval_policy);
        assert_eq!(kept.web_search(), expected.web_search());
    }

    let read_only_mode = || sandbox(ReadOnly);
    let by_user = ThreadOptions { approvals_reviewer: Some(user), ..read_only_mode() };
    for (policy, least) in [
        (&read_only, by_user.clone()),
        (&workspace, by_user),
        (&offline, ThreadOptions { network_access_enabled: Some(false), ..read_only_mode() }),
        (&listed, read_only_mode()),
        (&never, approval(ApprovalPolicy::Never)),
        (&asking, approval(ApprovalPolicy::OnRequest)),
        (&reviewed, reviewer(ApprovalsReviewer::AutoReview)),
        (&cached, search(WebSearchMode::Disabled)),
        (&no_search, search(WebSearchMode::Disabled)),
        (&models, none()),
        (&no_loans, none()),
    ] {
        assert_eq!(settled(policy, none()), least);
        assert_eq!(fields(policy, &settled(policy, none())), Vec::<String>::new());
    }
}

#[test]
fn all_that_is_denied_is_told_together() {
    let policy = Policy {
        max_sandbox_mode: SandboxMode::ReadOnly,
        network_access: false,
        max_web_search: WebSearchMode::Disabled,
        models: Some(vec!["m".to_owned()]),
        ..Policy::default()
    };
    let options = ThreadOptions {
        network_access_enabled: Some(true),
        web_search_mode: Some(WebSearchMode::Live),
        model: Some("n".to_owned()),
        ..sandbox(SandboxMode::DangerFullAccess)
    };
    assert_eq!(
        fields(&policy, &options),
        ["sandbox_mode", "network_access_enabled", "web_search_mode", "model"]
            .map(|field| format!("thread_options.{field}"))
    );
}

#[test]
fn an_unnamed_model_must_be_allowed_too() {
    let policy = Policy { models: Some(vec!["gpt-5*".to_owned()]), ..Policy::default() };
    for (model, is_allowed) in [("gpt-5", true), ("o3", false), ("", false)] {
        let mut denied = Faults::default();
        policy.judge_unnamed_model(model, &mut denied);
        assert_eq!(denied.0.is_empty(), is_allowed, "{model}");
    }
}

#[test]
fn images_and_variables_are_those_that_are_allowed() {
    let inputs = [
        UserInput::Text("t".to_owned()),
        UserInput::LocalImage("/i.png".to_owned()),
        UserInput::ImageUrl("data:image/png;base64,".to_owned()),
    ];
    for (images, denied_fields) in [
        (ImagePolicy::Any, vec![]),
        (ImagePolicy::Data, vec!["inputs[1].local_image"]),
        (ImagePolicy::None, vec!["inputs[1].local_image", "inputs[2].image_url"]),
    ] {
        let mut denied = Faults::default();
        Policy { images, ..Policy::default() }.judge_inputs(&inputs, &mut denied);
        let fields: Vec<&str> = denied.0.iter().map(|denied| denied.field.as_str()).collect();
        assert_eq!(fields, denied_fields);
    }
    let policy = Policy { environment: vec!["LC_*".to_owned()], ..Policy::default() };
    let mut denied = Faults::default();
    policy.judge_environment("e", ["LC_ALL", "PATH", "lc_all"].into_iter(), &mut denied);
    let fields: Vec<&str> = denied.0.iter().map(|denied| denied.field.as_str()).collect();
    assert_eq!(fields, ["e[\"PATH\"]", "e[\"lc_all\"]"]);
}

fn approval(decision: ApprovalDecision) -> Answer {
    let rule = NetworkPolicyAmendment { host: "h".to_owned(), allow: true };
    Answer::Approval(ApprovalAnswer {
        decision: decision.into(),
        network_policy_amendment: Some(rule),
        ..Default::default()
    })
}

fn grant(granted: serde_json::Value) -> Answer {
    let permissions_json = granted.to_string();
    Answer::Permissions(PermissionsAnswer { permissions_json, ..Default::default() })
}

#[test]
fn who_is_held_to_a_ceiling_approves_of_nothing_above_it() {
    use ApprovalDecision as Decision;
    let is_denied = |policy: &Policy, answer: &Answer| {
        let mut denied = Faults::default();
        policy.judge_answer(answer, &mut denied);
        !denied.0.is_empty()
    };
    let free = Policy::default();
    let read_only = Policy { max_sandbox_mode: SandboxMode::ReadOnly, ..Policy::default() };
    let workspace = Policy { max_sandbox_mode: SandboxMode::WorkspaceWrite, ..Policy::default() };
    let offline = Policy { network_access: false, ..Policy::default() };
    let path = |path: &str, access: &str| json!({ "path": { "type": "path", "path": path }, "access": access });
    let net = json!({ "network": { "enabled": true } });
    let write = json!({ "fileSystem": { "write": ["/w"] } });
    let write_entry = json!({ "fileSystem": { "entries": [path("/w", "write")] } });
    let odd_entry = json!({ "fileSystem": { "entries": [path("/w", "all")] } });
    let odd_part = json!({ "fileSystem": { "owners": ["/w"] } });
    let read = json!({ "fileSystem": { "read": ["/r"], "entries": [path("/r", "read")] } });
    let other = json!({ "devices": ["/dev/sda"] });
    for (answer, by) in [
        (approval(Decision::Accept), [false, true, true, true]),
        (approval(Decision::AcceptForSession), [false, true, true, true]),
        (approval(Decision::AcceptWithExecPolicyAmendment), [false, true, true, true]),
        (approval(Decision::ApplyNetworkPolicyAmendment), [false, false, false, true]),
        (approval(Decision::Decline), [false; 4]),
        (approval(Decision::Cancel), [false; 4]),
        (grant(json!({})), [false; 4]),
        (grant(net), [false, false, false, true]),
        (grant(write), [false, true, false, false]),
        (grant(write_entry), [false, true, false, false]),
        (grant(odd_entry), [false, true, false, false]),
        (grant(odd_part), [false, true, false, false]),
        (grant(read), [false; 4]),
        (grant(other), [false, true, true, false]),
        (Answer::Elicitation(ElicitationAnswer::default()), [false; 4]),
    ] {
        let policies = [&free, &read_only, &workspace, &offline];
        assert_eq!(policies.map(|policy| is_denied(policy, &answer)), by, "{answer:?}");
    }
    let all = json!({ "fileSystem": {
        "read": ["/r"],
        "write": ["/a", 7],
        "entries": [path("/b", "write"), path("/c", "read"), { "path": { "type": "root" }, "access": "write" }],
    } });
    let some = |path: &str| Some(path.to_owned());
    assert_eq!(written(&grant(all)), [some("/a"), None, some("/b"), None]);
}

#[test]
fn a_tools_policy_is_wider_where_it_allows_more() {
    let outer = Policy { roots: Some(vec![PathBuf::from("/w")]), ..Policy::default() };
    assert_eq!(outer.wider_than(&outer), Vec::new());
    assert_eq!(outer.wider_than(&Policy::default()), Vec::new());
    let inner = Policy { environment: vec!["A".to_owned()], roots: None, ..outer.clone() };
    let keys: Vec<&str> = inner.wider_than(&outer).into_iter().map(|(key, _)| key).collect();
    // A tool that says nothing of them has those that hold for all.
    assert_eq!(keys, ["environment"]);
}
