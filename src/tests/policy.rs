//! What callers may ask for at most, on each way to Codex.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use tonic::Code;

use crate::model::options::{ApprovalPolicy, SandboxMode, WebSearchMode};
use crate::model::policy::{ImagePolicy, Policy};
use crate::model::question::{Answer, ApprovalAnswer, ApprovalDecision, PermissionsAnswer};
use crate::pb;
use crate::testing::{Played, prompt, sidecar_with};
use crate::turn::pixels::tests::png;
use crate::worker::testing::HOLD;

const DENIED: (Code, &str) = (Code::PermissionDenied, "POLICY_DENIED");

fn with_options(
    mut request: pb::RunTurnRequest,
    change: impl FnOnce(&mut pb::ThreadOptions),
) -> pb::RunTurnRequest {
    change(request.thread_options.get_or_insert_default());
    request
}

fn at(path: &Path, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    with_options(request, |options| {
        options.working_directory = Some(path.display().to_string());
        options.skip_git_repo_check = Some(true);
    })
}

fn said(mut request: pb::RunTurnRequest, input: pb::user_input::Input) -> pb::RunTurnRequest {
    request.inputs.push(pb::UserInput { input: Some(input) });
    request
}

#[tokio::test(start_paused = true)]
async fn a_turn_of_any_kind_says_the_least_where_nobody_says_anything() {
    let (sidecar, mut codex) = sidecar_with(|setup| {
        setup.policy = Policy {
            max_sandbox_mode: SandboxMode::WorkspaceWrite,
            network_access: false,
            max_web_search: WebSearchMode::Cached,
            approval_policies: Some(vec![ApprovalPolicy::Untrusted]),
            ..Policy::default()
        };
    })
    .await;
    let review = || pb::RunTurnRequest {
        inputs: Vec::new(),
        review: Some(pb::ReviewTarget {
            target: Some(pb::review_target::Target::Instructions("look".to_owned())),
        }),
        ..prompt("a", "")
    };
    let compact = || pb::RunTurnRequest { inputs: Vec::new(), compact: true, ..prompt("a", "") };
    for (request, method) in [
        (prompt("a", "hello"), "turn/start"),
        (prompt("a", "again"), "turn/start"),
        (review(), "thread/settings/update"),
        (compact(), "thread/settings/update"),
    ] {
        codex.heard.clear();
        // The repository of this project: a review wants one.
        let here = std::env::current_dir().unwrap();
        let mut turn = codex.during(sidecar.begin(at(&here, request))).await.unwrap();
        codex.during(turn.rest()).await;
        let heard = codex.heard_of(method);
        let asked = heard.iter().rev().find(|asked| !asked.params["cwd"].is_null()).unwrap();
        let read_only = json!({ "type": "readOnly", "networkAccess": false });
        assert_eq!(asked.params["sandboxPolicy"], read_only, "{method}");
        assert_eq!(asked.params["approvalPolicy"], "untrusted", "{method}");
    }
    let started = codex
        .heard
        .iter()
        .filter(|asked| matches!(asked.method.as_str(), "thread/start" | "thread/resume"));
    for asked in started {
        assert_eq!(asked.params["config"]["web_search"], "disabled");
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_nobody_named_must_be_allowed_too() {
    let allowed = |models: [&str; 1]| {
        let models = Some(models.map(str::to_owned).to_vec());
        move |setup: &mut crate::testing::Setup| setup.policy.models = models
    };
    let (sidecar, mut codex) = sidecar_with(allowed(["other*"])).await;
    for context in ["a", "a", "b"] {
        let refused = codex.during(sidecar.refused(prompt(context, "hello"))).await;
        refused.assert(DENIED.0, DENIED.1);
        assert_eq!(refused.fields, ["thread_options.model"]);
        assert!(refused.message.contains("\"m0\""), "{refused:?}");
    }
    assert_eq!(codex.count("turn/start"), 0);
    let named =
        with_options(prompt("a", "hello"), |options| options.model = Some("other-1".into()));
    codex.during(sidecar.run(named)).await.completed();

    let (sidecar, mut codex) = sidecar_with(allowed(["m0"])).await;
    codex.during(sidecar.run(prompt("a", "hello"))).await.completed();
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_swapped_for_a_link_while_a_turn_waits_lets_it_nowhere() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path().canonicalize().unwrap();
    let root = place.join("root");
    let (directory, outer) = (root.join("sub"), place.join("outer"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::create_dir(&outer).unwrap();
    let roots = Some(vec![root.clone()]);
    let sidecar = Played::with(|setup| setup.policy.roots = roots).await;
    for nowhere in [outer.clone(), place.join("none")] {
        let refused = sidecar.refused(at(&nowhere, prompt("a", "hello"))).await;
        refused.assert(DENIED.0, DENIED.1);
        assert_eq!(refused.fields, ["thread_options.working_directory"]);
        assert!(refused.message.contains("does not lie in"), "{refused:?}");
    }
    let mut first = sidecar.begin(at(&directory, prompt("a", HOLD))).await.unwrap();
    first.until("turn_started").await;
    let second = tokio::spawn({
        let (sidecar, request) = (sidecar.clone(), at(&directory, prompt("a", "hello")));
        async move { sidecar.refused(request).await }
    });
    sidecar.queued(1).await;
    std::fs::rename(&directory, root.join("real")).unwrap();
    symlink("../outer", &directory).unwrap();
    sidecar.release();
    first.rest().await;
    let mut turn = sidecar.begin(at(&root.join("real"), prompt("b", "hello"))).await.unwrap();
    turn.rest().await;
    turn.completed();
    let refused = second.await.unwrap();
    refused.assert(DENIED.0, DENIED.1);
    assert_eq!(refused.fields, ["thread_options.working_directory"]);
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_the_roots_is_given_by_its_own_path_and_images_with_their_data() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path().canonicalize().unwrap();
    let (root, more) = (place.join("root"), place.join("more"));
    for directory in [&root.join("real"), &more.join("dir")] {
        std::fs::create_dir_all(directory).unwrap();
    }
    symlink("real", root.join("link")).unwrap();
    symlink("../secret", root.join("image.png")).unwrap();
    std::fs::write(place.join("secret"), png(2, 2)).unwrap();
    std::fs::write(root.join("real/image.png"), png(1, 1)).unwrap();
    let roots = Some(vec![root.clone(), more.clone()]);
    let (sidecar, mut codex) = sidecar_with(|setup| setup.policy.roots = roots).await;
    let local = |path: &Path| {
        let path = path.display().to_string();
        pb::user_input::Input::LocalImage(pb::LocalImage { path })
    };
    let request = with_options(at(&root.join("link"), prompt("a", "look")), |options| {
        options.additional_directories = vec![more.join("dir").display().to_string()];
        options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
    });
    let request = said(request, local(&root.join("link/image.png")));
    codex.during(sidecar.run(request)).await.completed();
    let started = codex.heard_of("turn/start")[0].params.clone();
    assert_eq!(started["cwd"], json!(root.join("real")));
    assert_eq!(started["sandboxPolicy"]["writableRoots"], json!([more.join("dir")]));
    let image = &started["input"][1];
    assert_eq!(image["type"], "image");
    assert!(image["url"].as_str().unwrap().starts_with("data:image/png;base64,iVBOR"), "{image}");

    let mention = pb::Mention { name: "m".to_owned(), path: "/etc/passwd".to_owned() };
    let skill = pb::Skill { name: "s".to_owned(), path: "/etc/SKILL.md".to_owned() };
    let mut request = at(&root, prompt("a", "look"));
    for input in [
        local(&root.join("image.png")),
        pb::user_input::Input::Mention(mention),
        pb::user_input::Input::Skill(skill),
        local(&root.join("none.png")),
    ] {
        request = said(request, input);
    }
    let refused = codex.during(sidecar.refused(request)).await;
    refused.assert(DENIED.0, DENIED.1);
    let mut fields = refused.fields.clone();
    fields.sort();
    assert_eq!(
        fields,
        ["inputs[1].local_image.path", "inputs[2].mention.path", "inputs[3].skill.path"]
    );
    let missing = said(at(&root, prompt("a", "look")), local(&root.join("none.png")));
    let refused = codex.during(sidecar.refused(missing)).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    // The sidecar's own directory is in none of them.
    let refused = codex.during(sidecar.refused(prompt("a", "hello"))).await;
    refused.assert(DENIED.0, DENIED.1);
}

#[tokio::test(start_paused = true)]
async fn variables_are_one_turns_own() {
    let allowed = vec!["SET_*".to_owned()];
    let (sidecar, mut codex) = sidecar_with(|setup| setup.policy.environment = allowed).await;
    let setting = |value: &str| {
        with_options(prompt("a", "hello"), |options| {
            options.environment = [("SET_X".to_owned(), value.to_owned())].into();
        })
    };
    let key = "shell_environment_policy.set.SET_X";
    for (request, loaded_with) in [
        (setting("one"), Some(json!("one"))),
        (setting("one"), None),
        (setting("two"), Some(json!("two"))),
        (prompt("a", "hello"), Some(Value::Null)),
    ] {
        codex.heard.clear();
        let turn = codex.during(sidecar.run(request)).await;
        turn.completed();
        assert!(!format!("{:?}", turn.events).contains("SET_X"));
        let loads = ["thread/start", "thread/resume"].map(|method| codex.heard_of(method)).concat();
        let kept = loads.iter().filter(|asked| asked.params["ephemeral"] != true);
        let told: Vec<Value> = kept.map(|asked| asked.params["config"][key].clone()).collect();
        assert_eq!(told, loaded_with.into_iter().collect::<Vec<_>>());
    }
    let request = with_options(setting("x"), |options| {
        options.environment.extend([("PATH".to_owned(), "/canary".to_owned())]);
    });
    let refused = codex.during(sidecar.refused(request)).await;
    refused.assert(DENIED.0, DENIED.1);
    assert_eq!(refused.fields, ["thread_options.environment[\"PATH\"]"]);
    assert!(!refused.message.contains("canary"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_grants_no_more_than_the_turn_could_have_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("in")).unwrap();
    symlink("/etc", root.join("out")).unwrap();
    let roots = Some(vec![root.clone()]);
    let (sidecar, mut codex) = sidecar_with(|setup| {
        setup.policy = Policy {
            max_sandbox_mode: SandboxMode::WorkspaceWrite,
            roots,
            images: ImagePolicy::None,
            ..Policy::default()
        };
    })
    .await;
    let mut request = at(&root, prompt("a", "x"));
    request.set_question_policy(pb::QuestionPolicy::Ask);
    codex.holds_turns = true;
    let mut turn = codex.during(sidecar.begin(request)).await.unwrap();
    codex.during(turn.until("turn_started")).await;
    let (thread_id, turn_id) = codex.turns.last().unwrap().clone();
    let write = |path: &Path| json!({ "fileSystem": { "write": [path] } });
    for (id, method, more) in [
        (1, "item/commandExecution/requestApproval", json!({ "itemId": "i", "command": "true" })),
        (
            2,
            "item/permissions/requestApproval",
            json!({ "itemId": "p", "permissions": { "fileSystem": {
                "write": [root.join("in"), root.join("out"), "/etc"],
            } } }),
        ),
    ] {
        let mut params = more;
        params["threadId"] = json!(thread_id);
        params["turnId"] = json!(turn_id);
        codex.ask(id, method, params).await;
        turn.until("request_raised").await;
    }
    let id = turn.id();
    let decide = |decision: ApprovalDecision| {
        Answer::Approval(ApprovalAnswer { decision: decision.into(), ..Default::default() })
    };
    let grant = |granted: Value| {
        let permissions_json = granted.to_string();
        Answer::Permissions(PermissionsAnswer { permissions_json, ..Default::default() })
    };
    for (question, answer, field) in [
        ("1", decide(ApprovalDecision::Accept), "approval.decision"),
        ("1", decide(ApprovalDecision::AcceptForSession), "approval.decision"),
        ("2", grant(write(&root.join("out"))), "permissions.permissions_json"),
        ("2", grant(write(Path::new("/etc"))), "permissions.permissions_json"),
    ] {
        let refused = sidecar.answer_as("me", &id, question, answer).await.unwrap_err();
        refused.assert(DENIED.0, DENIED.1);
        assert_eq!(refused.fields, [field]);
    }
    sidecar.answer_as("me", &id, "2", grant(write(&root.join("in")))).await.unwrap();
    sidecar.answer_as("me", &id, "1", decide(ApprovalDecision::Decline)).await.unwrap();
    assert_eq!(codex.answered(2).await["result"]["permissions"], write(&root.join("in")));
    assert_eq!(codex.answered(1).await["result"]["decision"], "decline");

    let data = "data:image/png;base64,iVBORw0KGgo=".to_owned();
    let inputs = vec![pb::UserInput { input: Some(pb::user_input::Input::ImageUrl(data)) }];
    let request = pb::SteerTurnRequest { turn_id: id, inputs };
    let api = &sidecar.api;
    let steering = crate::grpc::api::codex_service_server::CodexService::steer_turn(
        api,
        tonic::Request::new(request),
    );
    let refused = crate::testing::Refused::from(steering.await.unwrap_err());
    refused.assert(DENIED.0, DENIED.1);
    assert_eq!(refused.fields, ["inputs[0].image_url"]);
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
}
