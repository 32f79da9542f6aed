//! Clients that are broken, hostile or merely slow: bounded memory, a clear error, and everybody else is served.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use roost_tests::node::{Database, Node, Setup};
use roost_tests::random::Random;
use roost_tests::session::{Session, Url};
use roost_tests::{machine, psql};

const MIB: u64 = 1 << 20;

/// Sends bytes and reads until the node closes the connection, at most for `patience`. `None`: it did not close it.
fn exchange(node: &Node, bytes: &[u8], patience: Duration) -> Result<Option<Vec<u8>>> {
    let mut stream = TcpStream::connect(node.listen())?;
    // The node may have closed the connection before everything is sent.
    let _ = stream.write_all(bytes);
    read_to_close(&mut stream, patience)
}

fn read_to_close(stream: &mut TcpStream, patience: Duration) -> Result<Option<Vec<u8>>> {
    let end = Instant::now() + patience;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(Some(answer)),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Some(answer)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The fields of the first ErrorResponse in what a server said: SQLSTATE and message.
fn error_in(answer: &[u8]) -> Option<(String, String)> {
    let at = answer.iter().position(|byte| *byte == b'E')?;
    let fields = answer.get(at + 5..)?.split(|byte| *byte == 0);
    let (mut code, mut message) = (None, None);
    for field in fields {
        match field.split_first() {
            Some((b'C', text)) if code.is_none() => code = Some(String::from_utf8_lossy(text).into_owned()),
            Some((b'M', text)) if message.is_none() => {
                message = Some(String::from_utf8_lossy(text).into_owned());
            }
            _ => {}
        }
    }
    Some((code?, message?))
}

/// A packet without a tag: length, then content.
fn packet(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), content].concat()
}

fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut content = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        content.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    content.push(0);
    packet(&content)
}

const VERSION_3: u32 = 3 << 16;

fn check_served(database: &Database) -> Result<()> {
    ensure!(psql::run(&database.url, "SELECT 6 * 7")? == "42", "a good client is not served");
    Ok(())
}

#[test]
fn malformed_first_packets_end_the_connection_and_nothing_else() -> Result<()> {
    let mut random = Random::from_environment("hostile");
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    check_served(&shop)?;
    let (node_pid, resident) = (node.node_pid()?, machine::resident_bytes(node.node_pid()?)?);
    let long_value = "x".repeat(9000);
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), vec![]),
        ("one byte".into(), vec![0]),
        ("length 0".into(), vec![0, 0, 0, 0, 0, 3, 0, 0]),
        ("length 3".into(), vec![0, 0, 0, 3, 0, 3, 0, 0]),
        ("length 4 and no code".into(), vec![0, 0, 0, 4]),
        ("the largest length".into(), vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a negative length".into(), vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("an unknown code".into(), packet(&0xdead_beef_u32.to_be_bytes())),
        ("protocol 1".into(), startup(1 << 16, &[("user", "a")])),
        ("protocol 2".into(), startup(2 << 16, &[("user", "a")])),
        ("protocol 4".into(), startup(4 << 16, &[("user", "a")])),
        ("no user".into(), startup(VERSION_3, &[("database", "postgres")])),
        ("an empty user".into(), startup(VERSION_3, &[("user", "")])),
        ("no terminator".into(), packet(&[&VERSION_3.to_be_bytes()[..], b"user\0abc"].concat())),
        ("a name without a value".into(), packet(&[&VERSION_3.to_be_bytes()[..], b"user\0\0"].concat())),
        ("no UTF-8".into(), packet(&[&VERSION_3.to_be_bytes()[..], b"user\0\xff\xfe\0\0"].concat())),
        ("a long user".into(), startup(VERSION_3, &[("user", &long_value)])),
        ("a thousand parameters".into(), startup(VERSION_3, &vec![("a", "b"); 1000])),
        ("replication".into(), startup(VERSION_3, &[("user", "con_a"), ("replication", "true")])),
        ("a short cancel request".into(), packet(&80_877_102_u32.to_be_bytes())),
        (
            "a cancel request for nobody".into(),
            packet(&[&80_877_102_u32.to_be_bytes()[..], &[7; 8]].concat()),
        ),
        (
            "SSL asked for twice".into(),
            [packet(&80_877_103_u32.to_be_bytes()), packet(&80_877_103_u32.to_be_bytes())].concat(),
        ),
        ("SSL, then garbage".into(), [packet(&80_877_103_u32.to_be_bytes()), vec![0x41; 300]].concat()),
        ("GSS, then garbage".into(), [packet(&80_877_104_u32.to_be_bytes()), vec![0x41; 300]].concat()),
        ("a TLS hello with garbage".into(), [&[0x16, 3, 1, 2, 0][..], &[0x55; 600]].concat()),
        ("HTTP".into(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("SSH".into(), b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
    ];
    cases.extend((0..200).map(|number| {
        let length = random.below(200) as usize;
        (format!("garbage {number}"), random.text(length).into_bytes())
    }));
    std::thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = cases
            .iter()
            .map(|(name, bytes)| (name, scope.spawn(|| exchange(&node, bytes, Duration::from_secs(20)))))
            .collect();
        for (name, case) in running {
            let answer = case.join().map_err(|_| anyhow::anyhow!("{name}: the test panicked"))??;
            let answer =
                answer.with_context(|| format!("{name}: the connection is still open after 20 s"))?;
            if let Some((code, message)) = error_in(&answer) {
                ensure!(code.len() == 5 && !message.contains("panicked"), "{name}: {code} {message}");
            }
        }
        Ok(())
    })?;
    for (name, bytes) in cases.iter().filter(|(name, _)| name == "replication" || name.starts_with("a long"))
    {
        let answer = exchange(&node, bytes, Duration::from_secs(20))?.unwrap_or_default();
        let (code, message) = error_in(&answer).with_context(|| format!("{name}: no error came"))?;
        ensure!(!code.is_empty() && message.len() > 10, "{name}: {code} {message}");
    }
    check_served(&shop)?;
    assert_eq!(node.node_pid()?, node_pid, "the node was started again");
    let grown = machine::resident_bytes(node_pid)?.saturating_sub(resident);
    assert!(grown < 32 * MIB, "the node grew by {} MiB", grown / MIB);
    node.finish()
}

#[test]
fn a_startup_packet_over_the_limit_gets_an_error_that_names_the_limit() -> Result<()> {
    let node = Node::new()?;
    let value = "x".repeat(20_000);
    let answer =
        exchange(&node, &startup(VERSION_3, &[("user", "a"), ("options", &value)]), Duration::from_secs(20))?;
    let (_, message) = error_in(&answer.context("still open")?).context("no error")?;
    assert!(message.contains("10000") || message.contains("10,000"), "{message}");
    node.finish()
}

/// Starts a login of `database` and stops before the password.
fn half_login(node: &Node, database: &Database) -> Result<TcpStream> {
    let url = Url::parse(&database.url)?;
    let mut stream = TcpStream::connect(node.listen())?;
    stream.write_all(&startup(VERSION_3, &[("user", &url.user), ("database", &url.database)]))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut tag = [0];
    stream.read_exact(&mut tag)?;
    ensure!(tag == *b"R", "no request for authentication");
    Ok(stream)
}

#[test]
fn an_oversized_password_message_is_refused_before_it_is_read() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let resident = machine::resident_bytes(node.node_pid()?)?;
    for length in [0_u32, 3, 70_000, 1 << 30, u32::MAX] {
        let mut stream = half_login(&node, &shop)?;
        stream.write_all(&[&b"p"[..], &length.to_be_bytes()].concat())?;
        let chunk = [0x41; 65_536];
        // As much as the node takes.
        let sent = (0..2000).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        ensure!(sent < 2000, "the node took {} MiB of a password message of {length} bytes", sent / 16);
        let answer = read_to_close(&mut stream, Duration::from_secs(20))?;
        ensure!(answer.is_some(), "length {length}: still open");
    }
    assert_eq!(node.state("shop")?, "stopped");
    let grown = machine::resident_bytes(node.node_pid()?)?.saturating_sub(resident);
    assert!(grown < 16 * MIB, "the node grew by {} MiB", grown / MIB);
    node.finish()
}

/// Longer than a login may take (10 s).
const LOGIN_DEADLINE_IS_OVER: Duration = Duration::from_secs(25);

#[test]
fn a_client_that_takes_too_long_to_log_in_is_told_so() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let mut half = half_login(&node, &shop)?;
    // One byte at a time: the deadline is for all of the login, not for each byte.
    let mut stream = TcpStream::connect(node.listen())?;
    let begun = Instant::now();
    for byte in
        startup(VERSION_3, &[("user", "somebody"), ("database", "postgres"), ("options", &" ".repeat(200))])
    {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
        ensure!(begun.elapsed() < LOGIN_DEADLINE_IS_OVER, "a slow client was never told to go");
    }
    let answer = read_to_close(&mut half, LOGIN_DEADLINE_IS_OVER)?.context("a half login is still open")?;
    let (code, message) = error_in(&answer).context("a half login was ended without a word")?;
    assert!(code.len() == 5 && message.contains("10"), "the message names the limit: {code} {message}");
    assert_eq!(node.state("shop")?, "stopped");
    check_served(&shop)?;
    node.finish()
}

/// Connects from another address of this machine: limits are for each address.
async fn connect_from(node: &Node, address: [u8; 4]) -> Result<tokio::net::TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    Ok(socket.connect(node.listen().parse()?).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_connections_cost_bounded_memory_and_nobody_their_service() -> Result<()> {
    machine::allow_open_files(8000)?;
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    check_served(&shop)?;
    let pid = node.node_pid()?;
    let resident = machine::resident_bytes(pid)?;
    let mut idle = Vec::new();
    for number in 0..5000_u32 {
        let address = [127, 0, 0, 2 + u8::try_from(number / 900)?];
        idle.push(connect_from(&node, address).await.with_context(|| format!("connection {number}"))?);
    }
    let begun = Instant::now();
    let session = Session::open_within(&shop.url, Duration::from_secs(20)).await?;
    assert_eq!(session.value::<i32>("SELECT 42", &[]).await?, 42);
    eprintln!("a session beside 5,000 idle connections took {:?}", begun.elapsed());
    let grown = machine::resident_bytes(pid)?.saturating_sub(resident);
    eprintln!("5,000 idle connections: {} KiB each", grown / 5000 / 1024);
    assert!(grown < 150 * MIB, "the node grew by {} MiB", grown / MIB);
    drop(idle);
    session.close().await;
    assert_eq!(node.node_pid()?, pid);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_too_many_half_open_connections_is_told_so_and_others_are_served() -> Result<()> {
    machine::allow_open_files(8000)?;
    let mut node = Setup::default().with(["--limits-unauthenticated-per-address", "50"]).start()?;
    let shop = node.create("shop")?;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(connect_from(&node, [127, 0, 0, 9]).await?);
    }
    let one_more = connect_from(&node, [127, 0, 0, 9]).await?.into_std()?;
    one_more.set_nonblocking(false)?;
    let mut one_more = one_more;
    let _ = one_more.write_all(&startup(VERSION_3, &[("user", "somebody")]));
    let answer =
        read_to_close(&mut one_more, Duration::from_secs(8))?.context("one too many is still open")?;
    if let Some((code, message)) = error_in(&answer) {
        assert!(code == "53300" && message.contains("50"), "the message names the limit: {code} {message}");
    }
    check_served(&shop)?;
    drop(idle);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_and_one_that_sends_without_end_cost_bounded_memory() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let pid = node.node_pid()?;
    check_served(&shop)?;
    let resident = machine::resident_bytes(pid)?;

    // libpq reads everything into memory; a raw session through psql's COPY to a pipe that nobody reads does not.
    let mut silent = psql::command(&shop.url)
        .args(["-c", "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let endless = endless_query(&node, &shop);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = machine::resident_bytes(pid)?.saturating_sub(resident);
    silent.kill()?;
    silent.wait()?;
    endless?;
    assert!(grown < 32 * MIB, "the node grew by {} MiB", grown / MIB);
    check_served(&shop)?;
    assert_eq!(node.node_pid()?, pid);
    node.finish()
}

/// A session whose query message says 600 MiB and whose bytes never end: the sender is slowed down or told to go, and
/// the node keeps none of it.
fn endless_query(node: &Node, database: &Database) -> Result<()> {
    let pid = node.node_pid()?;
    let before = machine::resident_bytes(pid)?;
    let mut copy = psql::command(&database.url)
        .args(["-c", "CREATE TABLE IF NOT EXISTS sink (t text)", "-c", "COPY sink FROM STDIN"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let mut input = copy.stdin.take().context("no standard input")?;
    // One line without an end: Postgres refuses it at 1 GiB, or at its memory limit.
    let chunk = vec![b'y'; 1 << 20];
    for _ in 0..1100 {
        if input.write_all(&chunk).is_err() {
            break;
        }
        let grown = machine::resident_bytes(pid)?.saturating_sub(before);
        if grown > 64 * MIB {
            copy.kill()?;
            copy.wait()?;
            bail!("the node grew by {} MiB under an endless message", grown / MIB);
        }
    }
    drop(input);
    ensure!(!copy.wait()?.success(), "a line of more than 1 GiB was accepted");
    Ok(())
}
