//! What a cluster asks of those who use it: names, certificates, measure.

use super::{Etcd, put, store};
use crate::store::{EtcdAddress, EtcdStore, EtcdTls, Store as _};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_known_by_name_and_password_and_again_after_a_restart() {
    let Some(mut etcd) = Etcd::start(1).await else { return };
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("/v3/auth/role/add", r#"{"name":"root"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/user/add", r#"{"name":"ada","password":"secret"}"#),
        ("/v3/auth/role/add", r#"{"name":"keys"}"#),
        // Keys from /p/ to before /p0, in base 64.
        ("/v3/auth/role/grant", r#"{"name":"keys","perm":{"permType":"READWRITE","key":"L3Av","range_end":"L3Aw"}}"#),
        ("/v3/auth/user/grant", r#"{"user":"ada","role":"keys"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        let said = etcd.post(0, path, body);
        assert!(said.starts_with("HTTP/1.1 200"), "{path}: {said}");
    }
    let as_user = |prefix: &str, name: &str, password: &str| {
        let address = EtcdAddress::parse(&etcd.address(prefix)).unwrap();
        EtcdStore::new(&address.with_user(name.into(), password.into())).unwrap()
    };
    let known = as_user("/p", "ada", "secret");
    let first = known.put_if(put("/k", "1", None)).await.unwrap();
    let check = async |store: EtcdStore, expected: &str| {
        let error = store.get("/k").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(store(&etcd.address("/p")), "--etcd-user").await;
    check(as_user("/p", "ada", "guess"), "check --etcd-user").await;
    check(as_user("/other", "ada", "secret"), "on the prefix of --store").await;
    // Tokens do not outlive the server.
    etcd.kill(0);
    etcd.restart(0);
    known.put_if(put("/k", "2", Some(first))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_is_trusted_by_its_signer_alone() {
    let Some(etcd) = Etcd::start_with_tls().await else { return };
    let over = |ca: std::path::PathBuf| {
        let address = EtcdAddress::parse(&etcd.address("")).unwrap().with_tls(EtcdTls { ca, identity: None });
        EtcdStore::new(&address)
    };
    let trusted = over(etcd.certificate()).unwrap();
    let first = trusted.put_if(put("/k", "1", None)).await.unwrap();
    assert_eq!(trusted.get("/k").await.unwrap().unwrap().revision, first);
    let Some(other) = Etcd::start_with_tls().await else { return };
    let stranger = over(other.certificate()).unwrap().get("/k").await.unwrap_err().to_string();
    assert!(stranger.contains("certificate"), "{stranger}");
    let plain = store(&etcd.address("")).get("/k").await.unwrap_err().to_string();
    assert!(plain.contains("did not read a key within"), "{plain}");
    let missing = over("/nowhere/ca.pem".into()).err().unwrap().to_string();
    assert!(missing.contains("/nowhere/ca.pem"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_above_etcds_measure_is_refused_with_what_to_do() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let store = store(&etcd.address(""));
    for bytes in [1_800_000, 3_000_000] {
        let error = store.put_if(put("/k", &"x".repeat(bytes), None)).await.unwrap_err().to_string();
        assert!(error.contains("--max-request-bytes"), "{error}");
    }
}
