//! Authorities and certificates for tests.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};

use super::write;

/// An authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// The certificate of a server on this machine, and its key.
    pub(super) fn server(&self) -> (String, String) {
        self.sign(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![
                SanType::DnsName("localhost".try_into().unwrap()),
                SanType::IpAddress([127, 0, 0, 1].into()),
            ];
        })
    }

    /// The certificate of a client of this name, and its key.
    pub(super) fn client(&self, name: &str) -> (String, String) {
        self.sign(|params| of_client(params, name))
    }

    /// One that has expired.
    pub(super) fn expired_client(&self, name: &str) -> (String, String) {
        self.sign(|params| {
            of_client(params, name);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        })
    }
}

fn of_client(params: &mut CertificateParams, name: &str) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
}

/// Writes a certificate and its key into files.
pub(super) fn pair(
    place: &Path,
    name: &str,
    (certificate, key): &(String, String),
) -> [std::path::PathBuf; 2] {
    [(".pem", certificate), (".key", key)]
        .map(|(suffix, text)| write(&place.join(format!("{name}{suffix}")), text))
}
