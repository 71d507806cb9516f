//! Who is let in, by every kind of credential and by several at once.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use http::HeaderValue;
use tempfile::TempDir;

use super::*;

const OURS: &str = "a-token-of-the-default-tenant";
const THEIRS: &str = "a-token-of-the-tenant-named-a";

fn file(place: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = place.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn tenant(name: &str) -> Tenant {
    Tenant(name.to_owned())
}

fn with_tenants(default: Credentials, tenants: &[(&str, Credentials)]) -> Result<Access, String> {
    let tenants = tenants.iter().map(|(name, it)| (tenant(name), it.clone())).collect();
    let access = Access::new(AccessSettings { default, tenants, ..AccessSettings::default() });
    access.map_err(|wrong| wrong.iter().map(|it| format!("{it}\n")).collect())
}

/// The tokens of both tenants.
fn with_tokens(place: &TempDir) -> Access {
    let text = format!("{OURS}\n{THEIRS} tenant=a\n");
    let default =
        Credentials { token_file: Some(file(place, "tokens", &text)), ..Credentials::default() };
    with_tenants(default, &[("a", Credentials::default())]).unwrap()
}

fn by_tcp() -> Peer {
    Peer { name: CallerName("10.0.0.1:1".into()), ..Peer::default() }
}

fn by_unix(uid: u32, gid: u32) -> Peer {
    Peer { user: Some(User { uid, gid }), ..Peer::default() }
}

fn showing(values: &[&str]) -> HeaderMap {
    let values = values.iter().map(|value| HeaderValue::from_str(value).unwrap());
    values.map(|value| (header::AUTHORIZATION, value)).collect()
}

/// Whose a call is, or why it is nobody's.
fn judged(access: &Access, peer: &Peer, values: &[&str]) -> Result<String, &'static str> {
    let judged = access.judge(peer, &showing(values), SystemTime::now());
    judged.map(|tenant| tenant.0).map_err(|(cause, detail)| {
        for secret in [OURS, THEIRS] {
            assert!(!detail.contains(secret), "{detail}");
        }
        cause
    })
}

#[test]
fn where_no_credential_is_set_everybody_is_the_default_tenant() {
    let access = Access::default();
    assert!(!access.is_set());
    for peer in [by_tcp(), by_unix(1, 1)] {
        assert_eq!(access.admit(&peer, &showing(&["Bearer nonsense"])), Ok(Tenant::default()));
    }
    assert!(access.wanted(false).is_none());
}

#[test]
fn a_token_leads_to_its_tenant_and_all_else_to_nobody() {
    let place = tempfile::tempdir().unwrap();
    let access = with_tokens(&place);
    assert!(access.is_set());
    let (ours, theirs) = (format!("Bearer {OURS}"), format!("Bearer {THEIRS}"));
    let cases: &[(&[&str], Result<&str, &str>)] = &[
        (&[&ours], Ok("default")),
        (&[&theirs], Ok("a")),
        (&[&ours.replace("Bearer", "bEARER")], Ok("default")),
        (&[&format!("Bearer   {OURS} ")], Ok("default")),
        (&[], Err("it shows no credential")),
        (&[&ours, &ours], Err("it sends authorization more than once")),
        (&[&ours, "Bearer"], Err("it sends authorization more than once")),
        (&[OURS], Err("its authorization is no Bearer token")),
        (&[""], Err("its authorization is no Bearer token")),
        (&["Bearer"], Err("its authorization is no Bearer token")),
        (&[&ours.replace("Bearer", "Basic")], Err("its authorization is no Bearer token")),
        (&["Bearer "], Err("its token is not known")),
        (&[&format!("{ours}x")], Err("its token is not known")),
        (&[&format!("{ours}, {theirs}")], Err("its token is not known")),
    ];
    for peer in [by_tcp(), by_unix(1, 1)] {
        for (values, expected) in cases {
            let expected = expected.map(str::to_owned);
            assert_eq!(judged(&access, &peer, values), expected, "{values:?}");
        }
    }
    // Also who runs the sidecar.
    let own = by_unix(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_eq!(judged(&access, &own, &[]), Err("it shows no credential"));
    assert_eq!(access.admit(&own, &showing(&[])), Err(Unauthenticated));
}

#[test]
fn a_token_opens_nothing_from_its_end_on() {
    let place = tempfile::tempdir().unwrap();
    let text = format!("{OURS} expires=2030-01-01T00:00:00Z");
    let token_file = Some(file(&place, "tokens", &text));
    let access = with_tenants(Credentials { token_file, ..Credentials::default() }, &[]).unwrap();
    let end = tokens::rfc3339("2030-01-01T00:00:00Z").unwrap();
    let shown = showing(&[&format!("Bearer {OURS}")]);
    let before = end - Duration::from_millis(1);
    assert_eq!(access.judge(&by_tcp(), &shown, before), Ok(Tenant::default()));
    let (cause, detail) = access.judge(&by_tcp(), &shown, end).unwrap_err();
    assert_eq!(cause, "its token has expired");
    assert!(detail.contains("line 1"), "{detail}");
}

#[test]
fn an_empty_file_of_tokens_lets_nobody_in() {
    let place = tempfile::tempdir().unwrap();
    let token_file = Some(file(&place, "tokens", "# none yet\n"));
    let access = with_tenants(Credentials { token_file, ..Credentials::default() }, &[]).unwrap();
    assert!(access.is_set());
    assert_eq!(judged(&access, &by_tcp(), &[]), Err("it shows no credential"));
    let shown = format!("Bearer {OURS}");
    assert_eq!(judged(&access, &by_tcp(), &[&shown]), Err("its token is not known"));
}

#[test]
fn users_and_groups_of_unix_sockets_are_credentials() {
    let default = Credentials { unix_uids: Some(vec![10]), ..Credentials::default() };
    let of_a = Credentials {
        unix_uids: Some(vec![20]),
        unix_gids: Some(vec![200]),
        ..Credentials::default()
    };
    let access = with_tenants(default, &[("a", of_a.clone())]).unwrap();
    assert!(access.is_set());
    let cases = [
        ((10, 1), Ok("default")),
        ((20, 1), Ok("a")),
        ((30, 200), Ok("a")),
        ((20, 200), Ok("a")),
        ((10, 200), Err("its user and its group are of different tenants")),
        (
            (30, 1),
            Err("its user is not among unix_allow_uids, nor its group among unix_allow_gids"),
        ),
    ];
    for ((uid, gid), expected) in cases {
        let expected = expected.map(str::to_owned);
        assert_eq!(judged(&access, &by_unix(uid, gid), &[]), expected, "{uid}:{gid}");
    }
    assert_eq!(judged(&access, &by_tcp(), &[]), Err("it shows no credential"));
    assert_eq!(access.wanted(false), None);
    assert_eq!(access.wanted(true).unwrap(), "to be of user 10, 20, or to be of group 200");

    // Where only tenants have users, others may have a token.
    let place = tempfile::tempdir().unwrap();
    let token_file = Some(file(&place, "tokens", OURS));
    let default = Credentials { token_file, ..Credentials::default() };
    let access = with_tenants(default, &[("a", of_a)]).unwrap();
    let shown = format!("Bearer {OURS}");
    assert_eq!(judged(&access, &by_unix(30, 1), &[&shown]), Ok("default".to_owned()));
    assert_eq!(
        judged(&access, &by_unix(20, 1), &[&shown]),
        Err("its credentials are of different tenants")
    );
    // A list that is empty names nobody.
    let nobody = Credentials { unix_uids: Some(Vec::new()), ..Credentials::default() };
    let access = with_tenants(nobody, &[]).unwrap();
    assert!(access.is_set() && judged(&access, &by_unix(0, 0), &[]).is_err());
}

#[test]
fn names_of_certificates_lead_to_tenants() {
    let of_a = Credentials {
        client_names: Some(vec!["A.example".to_owned(), "spiffe://example/A".to_owned()]),
        ..Credentials::default()
    };
    let default_names = |names: Option<&[&str]>| Credentials {
        client_names: names.map(|names| names.iter().map(|name| name.to_string()).collect()),
        ..Credentials::default()
    };
    let rules = |names: Option<&[&str]>| {
        let tenants = BTreeMap::from([(tenant("a"), of_a.clone())]);
        Rules::new(&default_names(names), &tenants).unwrap()
    };
    let named = |name: &str| Ok(rules::ByCertificate::Named(tenant(name)));
    let of = |rules: &Rules, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        rules.by_certificate(&names).map_err(|(cause, _)| cause)
    };
    let open = rules(None);
    assert_eq!(of(&open, &["a.example"]), named("a"));
    assert_eq!(of(&open, &["other", "spiffe://example/A"]), named("a"));
    // Only hosts are the same in capitals.
    assert_eq!(of(&open, &["spiffe://example/a"]), Ok(rules::ByCertificate::Anybody));
    assert_eq!(of(&open, &[]), Ok(rules::ByCertificate::Anybody));
    let listed = rules(Some(&["b.example"]));
    assert_eq!(of(&listed, &["b.example"]), named("default"));
    assert_eq!(
        of(&listed, &["a.example", "b.example"]),
        Err("its client certificate has names of different tenants")
    );
    let nobodys = Err("its client certificate has no name among client_names");
    assert_eq!(of(&listed, &["c.example"]), nobodys);
    assert_eq!(of(&listed, &[]), nobodys);
}

#[test]
fn a_credential_is_one_tenants_only() {
    let place = tempfile::tempdir().unwrap();
    let uids = |uid| Credentials { unix_uids: Some(vec![uid]), ..Credentials::default() };
    let told = with_tenants(uids(1), &[("a", uids(2)), ("b", uids(1))]).unwrap_err();
    assert_eq!(
        told,
        "tenants.b.unix_uids: 1: is the top level's, too; a credential is one tenant's\n"
    );
    let names = |name: &str| Credentials {
        client_names: Some(vec![name.to_owned()]),
        unix_gids: Some(vec![5]),
        ..Credentials::default()
    };
    // A name of a host is the same in capitals; all that is wrong is told.
    let told = with_tenants(Credentials::default(), &[("a", names("n")), ("b", names("N"))]);
    assert_eq!(
        told.unwrap_err(),
        "tenants.b.client_names: n: is tenants.a's, too; a credential is one tenant's\n\
         tenants.b.unix_gids: 5: is tenants.a's, too; a credential is one tenant's\n"
    );
    let tokens = |name| {
        let token_file = Some(file(&place, name, &format!("# {name}\n{OURS}\n")));
        Credentials { token_file, ..Credentials::default() }
    };
    let missing =
        Credentials { token_file: Some(place.path().join("none")), ..Credentials::default() };
    let told = with_tenants(tokens("one"), &[("a", tokens("two")), ("b", missing)]).unwrap_err();
    let [first, second] = *told.lines().collect::<Vec<_>>() else { panic!("{told}") };
    assert!(first.starts_with("tenants.a.token_file: ") && first.contains("two: line 2"), "{told}");
    assert!(second.starts_with("tenants.b.token_file: ") && second.contains("can't be"), "{told}");
    assert!(!told.contains(OURS), "{told}");
}

#[test]
fn a_tenant_that_nobody_can_be_is_known() {
    let place = tempfile::tempdir().unwrap();
    let text = format!("{OURS} tenant=a\n");
    let default =
        Credentials { token_file: Some(file(&place, "tokens", &text)), ..Credentials::default() };
    let uids = Credentials { unix_uids: Some(vec![1]), ..Credentials::default() };
    let none = Credentials { unix_uids: Some(Vec::new()), ..Credentials::default() };
    let tenants = [("a", Credentials::default()), ("b", uids), ("c", none)];
    assert_eq!(with_tenants(default, &tenants).unwrap().out_of_reach(), ["c"]);
}

#[test]
fn without_a_token_that_is_listed_callers_are_not_said_to_need_one() {
    let place = tempfile::tempdir().unwrap();
    let default = Credentials {
        token_file: Some(file(&place, "tokens", "# none\n")),
        ..Credentials::default()
    };
    let access = with_tenants(default, &[]).unwrap();
    assert_eq!((access.wanted(false), access.wanted(true)), (None, None));
    file(&place, "tokens", OURS);
    assert!(access.look(true, Instant::now())[0].is_ok());
    assert_eq!(access.wanted(false), Some("a token".to_owned()));
}

#[test]
fn tokens_are_read_again_when_they_change_and_kept_when_they_are_wrong() {
    let place = tempfile::tempdir().unwrap();
    let access = with_tokens(&place);
    let path = place.path().join("tokens");
    let now = Instant::now();
    let is_let_in = |token: &str| {
        access.judge(&by_tcp(), &showing(&[&format!("Bearer {token}")]), SystemTime::now()).is_ok()
    };
    assert_eq!(access.look(false, now), []);

    const NEXT: &str = "the-token-that-comes-after";
    file(&place, "tokens", NEXT);
    let told = access.look(false, now);
    assert!(told[0].as_ref().unwrap().starts_with("1 tokens of "), "{told:?}");
    assert!(is_let_in(NEXT) && !is_let_in(OURS) && !is_let_in(THEIRS));

    for (text, mode) in
        // About to be written.
        [
            ("", 0o600),
            ("short", 0o600),
            (OURS, 0o644),
            ("x-x-x-x-x-x-x-x-x tenant=unheard", 0o600),
        ]
    {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(access.look(false, now)[0].is_err(), "{text}");
        assert!(is_let_in(NEXT) && !is_let_in(OURS), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(access.look(false, now)[0].is_err());
    assert!(is_let_in(NEXT));
    file(&place, "tokens", "# nobody");
    assert!(access.look(false, now)[0].as_ref().is_ok_and(|told| told.starts_with("0 tokens")));
    assert!(!is_let_in(NEXT));
    file(&place, "tokens", NEXT);
    assert!(access.look(false, now)[0].is_ok() && is_let_in(NEXT));
    std::fs::remove_file(&path).unwrap();

    // As Kubernetes changes a secret: by another link.
    for (directory, text) in [("one", OURS), ("two", THEIRS)] {
        std::fs::create_dir(place.path().join(directory)).unwrap();
        file(&place, &format!("{directory}/tokens"), text);
        let new = place.path().join("new");
        std::os::unix::fs::symlink(directory, &new).unwrap();
        std::fs::rename(&new, place.path().join("data")).unwrap();
        if directory == "one" {
            std::os::unix::fs::symlink("data/tokens", &path).unwrap();
        }
        assert!(access.look(false, now)[0].is_ok());
        assert!(is_let_in(text));
    }
    assert!(!is_let_in(OURS));
    // Whatever it is, where it must be read.
    assert!(access.look(true, now)[0].is_ok());
}

#[test]
fn a_file_that_others_read_is_no_file_of_tokens() {
    let place = tempfile::tempdir().unwrap();
    let path = file(&place, "tokens", OURS);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let default = Credentials { token_file: Some(path), ..Credentials::default() };
    let told = with_tenants(default, &[]).unwrap_err();
    assert!(told.contains("0640") && told.contains("chmod 0600"), "{told}");
}
