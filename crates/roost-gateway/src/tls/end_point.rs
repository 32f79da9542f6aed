//! `tls-server-end-point` (RFC 5929, section 4.1): the hash of the server's certificate that binds SCRAM to the TLS
//! session. The hash function is the one of the certificate's signature, and SHA-256 where that is MD5 or SHA-1.

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, digest};
use x509_parser::oid_registry::{
    OID_HASH_SHA1, OID_NIST_HASH_SHA256, OID_NIST_HASH_SHA384, OID_NIST_HASH_SHA512, OID_PKCS1_MD5WITHRSAENC,
    OID_PKCS1_RSASSAPSS, OID_PKCS1_SHA1WITHRSA, OID_PKCS1_SHA224WITHRSA, OID_PKCS1_SHA256WITHRSA,
    OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA224, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512, Oid, asn1_rs::oid,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::x509::AlgorithmIdentifier;

/// The binding data of a certificate in DER form. `None` if its signature has no single hash function (Ed25519), for
/// which the RFC defines nothing: channel binding is then not offered.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = hash_of_signature(&parsed.signature_algorithm)?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

fn hash_of_signature(signature: &AlgorithmIdentifier<'_>) -> Option<&'static Algorithm> {
    let oid = &signature.algorithm;
    let is = |candidates: &[Oid<'static>]| candidates.contains(oid);
    if is(&[OID_PKCS1_SHA256WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_PKCS1_MD5WITHRSAENC, OID_PKCS1_SHA1WITHRSA])
        // ecdsa-with-SHA1
        || is(&[oid!(1.2.840.10045.4.1)])
    {
        Some(&SHA256)
    } else if is(&[OID_PKCS1_SHA384WITHRSA, OID_SIG_ECDSA_WITH_SHA384]) {
        Some(&SHA384)
    } else if is(&[OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA512]) {
        Some(&SHA512)
    } else if is(&[OID_PKCS1_SHA224WITHRSA, OID_SIG_ECDSA_WITH_SHA224]) {
        Some(&SHA224)
    } else if is(&[OID_PKCS1_RSASSAPSS]) {
        let parameters = RsaSsaPssParams::try_from(signature.parameters.as_ref()?).ok()?;
        let hash = parameters.hash_algorithm_oid();
        let is = |candidate: &Oid<'static>| hash == candidate;
        if is(&OID_NIST_HASH_SHA256) || is(&OID_HASH_SHA1) {
            Some(&SHA256)
        } else if is(&OID_NIST_HASH_SHA384) {
            Some(&SHA384)
        } else if is(&OID_NIST_HASH_SHA512) {
            Some(&SHA512)
        } else {
            None
        }
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_certificates_signature() {
        for (signature, hash) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, &SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, &SHA384),
            (&rcgen::PKCS_RSA_SHA256, &SHA256),
            (&rcgen::PKCS_RSA_SHA384, &SHA384),
            (&rcgen::PKCS_RSA_SHA512, &SHA512),
        ] {
            let der = certificate(signature);
            assert_eq!(end_point(&der).unwrap(), digest(hash, &der).as_ref());
        }
    }

    #[test]
    fn a_signature_without_a_hash_function_has_no_binding() {
        assert_eq!(end_point(&certificate(&rcgen::PKCS_ED25519)), None);
        assert_eq!(end_point(b"not a certificate"), None);
    }

    /// Signed with RSA and SHA-1 by another implementation (`openssl req -x509 -sha1`), for which the RFC asks SHA-256.
    #[test]
    fn sha1_and_pss_signatures_follow_the_rfc() {
        let Ok(made) = openssl(&["-sha1"]) else { return };
        assert_eq!(end_point(&made).unwrap(), digest(&SHA256, &made).as_ref());
        let made = openssl(&["-sha384", "-sigopt", "rsa_padding_mode:pss"]).unwrap();
        assert_eq!(end_point(&made).unwrap(), digest(&SHA384, &made).as_ref());
    }

    fn openssl(signature: &[&str]) -> std::io::Result<Vec<u8>> {
        let output = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                "/dev/null",
                "-outform",
                "DER",
            ])
            .args(["-subj", "/CN=test", "-days", "1"])
            .args(signature)
            .output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }
}
