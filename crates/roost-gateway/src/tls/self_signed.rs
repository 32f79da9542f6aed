//! The certificate that a node makes for itself on first start: enough for encryption and for `sslmode=require`, and,
//! copied to the clients, for `verify-full`.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use roost_durable::Disk;

/// The longest file that is taken for one of them, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The files of a self-signed certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SelfSigned {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Makes certificate and key in `directory`, whose parent exists, unless both are there. Once this has returned, later
/// starts find the same two: clients may have been given the certificate.
///
/// # Errors
///
/// When a name is not one that a certificate can carry, or a file cannot be written.
pub(super) fn ensure<D: Disk>(disk: &D, directory: &Path, names: &[String]) -> io::Result<SelfSigned> {
    ensure_with(disk, directory, || generate(names).map_err(io::Error::other))
}

/// Like [`ensure`], with the texts of certificate and key from the caller.
fn ensure_with<D: Disk>(
    disk: &D,
    directory: &Path,
    generate: impl FnOnce() -> io::Result<(String, String)>,
) -> io::Result<SelfSigned> {
    // Also when they are there: whoever made them may have been killed before their names were durable.
    roost_durable::create_dir(disk, directory)?;
    disk.sync_dir(directory)?;
    let files = SelfSigned { certificate: directory.join("server.crt"), key: directory.join("server.key") };
    if is_there(disk, &files.certificate)? && is_there(disk, &files.key)? {
        return Ok(files);
    }
    let (certificate, key) = generate()?;
    // A certificate is never beside a key that is not its own: it goes first and comes last.
    roost_durable::remove(disk, &files.certificate)?;
    roost_durable::replace(disk, &files.key, key.as_bytes())?;
    roost_durable::replace(disk, &files.certificate, certificate.as_bytes())?;
    Ok(files)
}

fn is_there<D: Disk>(disk: &D, path: &Path) -> io::Result<bool> {
    match disk.read(path, MAX_BYTES) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use roost_durable::RealDisk;
    use roost_durable::simulated::{Random, SimulatedDisk};

    use super::*;

    #[test]
    fn the_first_start_makes_a_private_key_that_later_starts_keep() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("tls");
        let files = ensure(&RealDisk, &home, &["db.example.com".to_owned(), "192.0.2.7".to_owned()]).unwrap();
        let key = fs::read(&files.key).unwrap();
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(ensure(&RealDisk, &home, &[]).unwrap(), files);
        assert_eq!(fs::read(&files.key).unwrap(), key);
    }

    #[test]
    fn a_start_that_was_cut_short_is_made_good() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("server.key.new"), "half a k").unwrap();
        fs::write(directory.path().join("server.key"), "of a certificate that was never written").unwrap();
        let files = ensure(&RealDisk, directory.path(), &[]).unwrap();
        assert!(fs::read_to_string(files.key).unwrap().contains("PRIVATE KEY"));
        assert!(files.certificate.exists());
    }

    /// Certificate and key of a number, each longer than a sector.
    fn pair(number: u64) -> (String, String) {
        (format!("certificate {number}").repeat(100), format!("key {number}").repeat(200))
    }

    fn found(disk: &SimulatedDisk, files: &SelfSigned) -> Option<(String, String)> {
        let text = |path| disk.read(path, MAX_BYTES).ok().map(|bytes| String::from_utf8(bytes).unwrap());
        Some((text(&files.certificate)?, text(&files.key)?))
    }

    #[test]
    fn certificate_and_key_belong_together_and_stay_after_ten_thousand_power_cuts() {
        let directory = Path::new("/tls");
        let files =
            SelfSigned { certificate: directory.join("server.crt"), key: directory.join("server.key") };
        for seed in 0..1_000 {
            let disk = SimulatedDisk::new(seed);
            let mut random = Random::new(seed);
            let mut kept = None;
            for number in 0..10 {
                // Killed somewhere, then started again; after that the power goes.
                disk.cut_power_after(random.below(25));
                let killed = ensure_with(&disk, directory, || Ok(pair(2 * number)));
                disk.go_on();
                if killed.is_ok() {
                    kept = found(&disk, &files);
                }
                disk.cut_power_after(random.below(25));
                let cut = ensure_with(&disk, directory, || Ok(pair(2 * number + 1)));
                disk.go_on();
                if cut.is_ok() {
                    kept = found(&disk, &files);
                }
                disk.reboot();
                let found = found(&disk, &files);
                if let Some(found) = &found {
                    let numbers = 0..2 * number + 2;
                    assert!(
                        numbers.into_iter().any(|number| *found == pair(number)),
                        "seed {seed}: {found:?}"
                    );
                }
                assert!(kept.is_none() || found == kept, "seed {seed}: {kept:?} became {found:?}");
                // Somebody who takes one of them away gets two new ones.
                if random.below(3) == 0 && kept.is_some() {
                    roost_durable::remove(&disk, &files.key).unwrap();
                    kept = None;
                }
            }
        }
    }
}
