//! What clients see as the node's identity: loaded from PEM files, and loaded again when they change. New files that do
//! not work keep the old identity in place and are logged once.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;

use super::{ALPN, end_point, self_signed};
use crate::config::{CertificateSource, SHORTEST_INTERVAL};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// The file, or the directory of a certificate that was to be made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no PEM section of the kind that is needed.
    #[error("{path}: {source}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("{path}: no certificate in it", path = .0.display())]
    Empty(PathBuf),
    /// Certificate and key do not go together, or their algorithm is not supported.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A certificate with its key, ready for handshakes.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) config: Arc<ServerConfig>,
    /// See [`end_point`](super::end_point).
    pub(crate) end_point: Option<Arc<[u8]>>,
}

/// The identity of the moment, and the files that it comes from.
#[derive(Debug)]
pub(crate) struct IdentityStore {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwap<Identity>,
}

/// What changes when a file does.
type Stamp = Option<(u64, u64, i64, i64)>;

impl IdentityStore {
    /// Loads the configured identity, or makes one.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, written or used.
    pub(crate) fn open(source: &CertificateSource) -> Result<Self, TlsError> {
        let (certificate, key) = match source {
            CertificateSource::Files { certificate, key } => (certificate.clone(), key.clone()),
            CertificateSource::SelfSigned { directory, names } => {
                let files = self_signed::ensure(&roost_durable::RealDisk, directory, names)
                    .map_err(|source| TlsError::File { path: directory.clone(), source })?;
                (files.certificate, files.key)
            }
        };
        let current = ArcSwap::from_pointee(load(&certificate, &key)?);
        Ok(Self { certificate, key, current })
    }

    /// The identity for a new handshake.
    pub(crate) fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// Follows changes of the files until the task is dropped.
    pub(crate) async fn follow(self: Arc<Self>, every: Duration) {
        let mut seen = self.stamps();
        let mut ticks = tokio::time::interval(every.max(SHORTEST_INTERVAL));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.stamps();
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    fn stamps(&self) -> [Stamp; 2] {
        [stamp(&self.certificate), stamp(&self.key)]
    }

    fn reload(&self) {
        match load(&self.certificate, &self.key) {
            Ok(identity) => {
                self.current.store(Arc::new(identity));
                tracing::info!(certificate = %self.certificate.display(), "certificate reloaded");
            }
            Err(error) => {
                tracing::error!(%error, "new certificate files do not work; the old certificate stays");
            }
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

fn load(certificate: &Path, key: &Path) -> Result<Identity, TlsError> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source });
    let malformed = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, source }
    };
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(malformed(certificate))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(malformed(key))?;
    let leaf = chain.first().ok_or_else(|| TlsError::Empty(certificate.to_owned()))?;
    let end_point = end_point::end_point(leaf).map(Arc::from);

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Identity { config: Arc::new(config), end_point })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(directory: &Path, name: &str) -> (Vec<u8>, String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(directory.join("c.pem"), certificate.pem()).unwrap();
        fs::write(directory.join("k.pem"), key.serialize_pem()).unwrap();
        (certificate.der().to_vec(), certificate.pem(), key.serialize_pem())
    }

    fn sha256(der: &[u8]) -> Vec<u8> {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref().to_vec()
    }

    #[tokio::test]
    async fn changed_files_are_loaded_and_bad_ones_keep_the_old_identity() {
        let directory = tempfile::tempdir().unwrap();
        let (first, _, _) = write_pair(directory.path(), "one.example.com");
        let source = CertificateSource::Files {
            certificate: directory.path().join("c.pem"),
            key: directory.path().join("k.pem"),
        };
        let store = Arc::new(IdentityStore::open(&source).unwrap());
        assert_eq!(store.current().end_point.as_deref(), Some(sha256(&first).as_slice()));

        let following = tokio::spawn(store.clone().follow(Duration::from_millis(10)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::write(directory.path().join("c.pem"), "garbage").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(store.current().end_point.as_deref(), Some(sha256(&first).as_slice()));

        let (second, _, _) = write_pair(directory.path(), "two.example.com");
        let changed = async {
            while store.current().end_point.as_deref() != Some(sha256(&second).as_slice()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), changed).await.unwrap();
        following.abort();
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (_, certificate, _) = write_pair(directory.path(), "one.example.com");
        write_pair(directory.path(), "two.example.com");
        fs::write(directory.path().join("c.pem"), certificate).unwrap();
        let source = CertificateSource::Files {
            certificate: directory.path().join("c.pem"),
            key: directory.path().join("k.pem"),
        };
        assert!(matches!(IdentityStore::open(&source), Err(TlsError::Unusable(_))));
    }
}
