//! The certificate that a node makes for itself on first start: enough for encryption and for `sslmode=require`, and,
//! copied to the clients, for `verify-full`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};

/// The files of a self-signed certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SelfSigned {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Makes certificate and key in `directory` unless both are there.
///
/// # Errors
///
/// When a name is not one that a certificate can carry, or a file cannot be written.
pub(super) fn ensure(directory: &Path, names: &[String]) -> io::Result<SelfSigned> {
    let files = SelfSigned { certificate: directory.join("server.crt"), key: directory.join("server.key") };
    if files.certificate.try_exists()? && files.key.try_exists()? {
        return Ok(files);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let (certificate, key) = generate(names).map_err(io::Error::other)?;
    // The key first: a crash in between leaves no certificate, and the next start makes both anew.
    write_atomically(directory, &files.key, key.as_bytes(), 0o600)?;
    write_atomically(directory, &files.certificate, certificate.as_bytes(), 0o644)?;
    Ok(files)
}

fn generate(names: &[String]) -> Result<(String, String), rcgen::Error> {
    let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    all.extend(
        names.iter().filter(|name| !["localhost", "127.0.0.1", "::1"].contains(&name.as_str())).cloned(),
    );
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, "Roost");
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    // Whoever trusts it has copied it, so there is nothing that an expiry would bring but an outage.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Writes a file so that after a crash it is there whole or not at all.
fn write_atomically(directory: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_start_makes_a_private_key_that_later_starts_keep() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("tls");
        let files = ensure(&home, &["db.example.com".to_owned(), "192.0.2.7".to_owned()]).unwrap();
        let key = fs::read(&files.key).unwrap();
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(ensure(&home, &[]).unwrap(), files);
        assert_eq!(fs::read(&files.key).unwrap(), key);
    }

    #[test]
    fn a_start_that_was_cut_short_is_made_good() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("server.key.new"), "half a k").unwrap();
        fs::write(directory.path().join("server.key"), "of a certificate that was never written").unwrap();
        let files = ensure(directory.path(), &[]).unwrap();
        assert!(fs::read_to_string(files.key).unwrap().contains("PRIVATE KEY"));
        assert!(files.certificate.exists());
    }
}
