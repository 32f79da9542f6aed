//! Tests of whole exchanges: the RFC's, Postgres' verifiers, and clients that break the rules.

use proptest::prelude::*;

use super::*;

const NAME: &str = "user";
const PASSWORD: &str = "pencil";
const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
const BINDING: &[u8] = b"hash of the certificate";

fn salt() -> Vec<u8> {
    BASE64.decode(SALT).unwrap()
}

fn verifier() -> Verifier {
    Verifier::from_password(PASSWORD, &salt(), 4096)
}

fn server(binding: ChannelBinding<'_>) -> ServerFirst {
    ServerFirst::new(verifier(), binding, SERVER_NONCE.to_owned())
}

fn password(password: &str) -> Credentials {
    Credentials::Password(password.to_owned())
}

/// A client's first message in plain text, and why it is refused.
fn refusal(mechanism: &str, binding: ChannelBinding<'_>, message: &str) -> ScramError {
    server(binding).client_first(mechanism, message.as_bytes()).unwrap_err()
}

/// A whole exchange between both sides of this module.
fn exchange(verifier: Verifier, credentials: Credentials) -> Result<ClientKeys, ScramError> {
    let server = ServerFirst::new(verifier, ChannelBinding::Unavailable, fresh_nonce());
    let mut client = ClientExchange::new(credentials, fresh_nonce());
    let (server, challenge) = server.client_first(MECHANISM, &client.first())?;
    let (verified, signature) = server.client_final(&client.challenge(&challenge)?)?;
    client.verify(&signature)?;
    Ok(verified.into_client_keys())
}

/// A client with channel binding, whose final message claims `header` and `binding`.
fn exchange_plus(header: &str, binding: &[u8], offered: &[u8]) -> Result<Verified, ScramError> {
    let bare = "n=,r=client";
    let server = server(ChannelBinding::Available(offered));
    let (server, challenge) =
        server.client_first(MECHANISM_PLUS, format!("p=tls-server-end-point,,{bare}").as_bytes())?;
    let bound = BASE64.encode([header.as_bytes(), binding].concat());
    let without_proof = format!("c={bound},r=client{SERVER_NONCE}");
    let auth_message = format!("{bare},{},{without_proof}", String::from_utf8(challenge).unwrap());
    let keys = ClientKeys::from_password(PASSWORD, &salt(), 4096);
    let signature = hmac_sha256(&sha256(&keys.client_key), &[auth_message.as_bytes()]);
    let proof = BASE64.encode(xor(keys.client_key, &signature));
    server.client_final(format!("{without_proof},p={proof}").as_bytes()).map(|(verified, _)| verified)
}

#[test]
fn the_server_follows_the_example_of_rfc_7677() {
    let (server, first) =
        server(ChannelBinding::Unavailable).client_first(MECHANISM, CLIENT_FIRST.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(first).unwrap(), SERVER_FIRST);
    let (verified, last) = server.client_final(CLIENT_FINAL.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(last).unwrap(), SERVER_FINAL);
    let keys = ClientKeys::from_password(PASSWORD, &salt(), 4096);
    assert_eq!(verified.client_key(), &keys.client_key);
    assert_eq!(verified.into_client_keys(), keys);
}

#[test]
fn the_client_follows_the_example_of_rfc_7677() {
    for credentials in
        [password(PASSWORD), Credentials::Keys(ClientKeys::from_password(PASSWORD, &salt(), 4096))]
    {
        let mut client = ClientExchange::named(credentials, NAME, CLIENT_NONCE.to_owned());
        assert_eq!(String::from_utf8(client.first()).unwrap(), CLIENT_FIRST);
        let last = client.challenge(SERVER_FIRST.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(last).unwrap(), CLIENT_FINAL);
        client.verify(SERVER_FINAL.as_bytes()).unwrap();
    }
}

/// Verifiers as Postgres 15 stored them for `CREATE ROLE ... PASSWORD`.
const STORED_BY_POSTGRES: [(&str, &str); 8] = [
    (
        "correct horse battery staple",
        "SCRAM-SHA-256$4096:IEbKXAqO79WdIpSvyvjISg==$RBZcZWybIxrjGvxE3DddbBdNWf73KVkrdjEejzjUeLs=:7D42XSmo2NAF9kVATBW2CbiiIzth7fsectgpLSsZ+mM=",
    ),
    (
        "I\u{ad}X",
        "SCRAM-SHA-256$4096:KXXRp3Tci4r6Su674OEjFg==$/lkj7xqTYo5PiPyfprecawRR3Z4xSiXna37zx3mIGWY=:P8dLsoiqXcHqY0T7IeoOhwCi6MHIdYhQ43Ywz5xTXjU=",
    ),
    (
        "cafe\u{301}",
        "SCRAM-SHA-256$4096:AGFzGkeIMfu2AMqc9IUSUg==$7YHVbkAnx3esjK4/KQ+TD2Js6PeCyLK6XTKvWt1Shik=:nPQ78AKT0Q/9Fr90e7qsun7KGj0mgd3FybbaGsRyAc4=",
    ),
    (
        "smile\u{1f600}\u{fb01}",
        "SCRAM-SHA-256$4096:dsUbj1F92sDRIn8Sdwr5NQ==$jn9i9UJFf/awYATrBy3GD3t1RU5avBStVaagoNKXOo0=:RVr9uTGvnmS3K1VSE4b5X1rrhlchjAtXoxMKXdNaof8=",
    ),
    (
        "\u{627}\u{628}1",
        "SCRAM-SHA-256$4096:WPt7Q7evHKGAMa1vfXmj1A==$xzswdYixzG6UdYeDJPenlCPDxIUOHEFDNB3G+wSddzM=:7123gd2gNrkFARGG0jEFiz/cZgjCcZHpLmaXWUfAGKI=",
    ),
    (
        "\u{a0}\u{fb01}x\u{200b}",
        "SCRAM-SHA-256$4096:i9OqU8oHBKcYQr40A3G0kQ==$IbvgRJEC9+z3tdPJGUoAGqYnm1uFz3XJ6lQDneb8Gog=:hAdcYzSyvI9OmZGPUMq1uJWSsq8h9AZKXlcaxSidOoE=",
    ),
    (
        "\u{ad}",
        "SCRAM-SHA-256$4096:lqJlm0hFoH5EMS6x8BPpFA==$eBnmusZIjIEzMDb0TTSMv5pysPPEGyxjjYXfx2eBxos=:/4QyRXb/rn8cYhCcf0OtvLghTOpaPDOIeG3PCHP+YII=",
    ),
    (
        "\u{ff21}\u{ff22}\u{2168}\u{3000}\u{628}",
        "SCRAM-SHA-256$4096:3N0BzA6+5G8QQ+7qGu5h+w==$LoilJW5UlIhqfDNQbMMFZtY6NwraHu6YgZc06Yy2YDQ=:eHMO1hD0NKnx7MSPVU0Lg7CFKY7tjuOrJiFgVOmX0YI=",
    ),
];

#[test]
fn verifiers_that_postgres_stored_verify_whatever_the_password_is_made_of() {
    for (plain, stored) in STORED_BY_POSTGRES {
        let verifier: Verifier = stored.parse().unwrap();
        assert_eq!(verifier.to_string(), stored);
        assert_eq!(
            Verifier::from_password(plain, &verifier.salt, verifier.iterations),
            verifier,
            "{plain:?}"
        );
        exchange(verifier, password(plain)).unwrap();
    }
}

#[test]
fn a_text_that_is_no_verifier_is_refused() {
    let good = verifier().to_string();
    let swap = |from: &str, to: &str| good.replace(from, to).parse::<Verifier>();
    assert!(good.parse::<Verifier>().is_ok());
    for (bad, why) in [
        (swap("SCRAM-SHA-256", "SCRAM-SHA-1"), VerifierError::Form),
        (swap(":", "$"), VerifierError::Form),
        ("".parse(), VerifierError::Form),
        ("md5a3556571e93b0d20722ba62be61e8c2d".parse(), VerifierError::Form),
        (swap("4096", "0"), VerifierError::Iterations),
        (swap("4096", "+4096"), VerifierError::Iterations),
        (swap("4096", "1000001"), VerifierError::Iterations),
        (swap("4096", "99999999999999999999"), VerifierError::Iterations),
        (swap("4096", ""), VerifierError::Iterations),
        (swap(SALT, ""), VerifierError::Salt),
        (swap(SALT, "not base64"), VerifierError::Salt),
        (swap(SALT, &BASE64.encode([0; MAX_SALT_LEN + 1])), VerifierError::Salt),
        (format!("{good}=").parse(), VerifierError::Key),
        (swap("=$", "=$AAAA"), VerifierError::Key),
    ] {
        assert_eq!(bad.unwrap_err(), why);
    }
    assert!(swap("4096", "1000000").is_ok());
    assert!(swap(SALT, &BASE64.encode([0; MAX_SALT_LEN])).is_ok());
}

#[test]
fn a_client_without_the_password_is_refused() {
    for credentials in [
        password("Pencil"),
        password(""),
        Credentials::Keys(ClientKeys::from_password(PASSWORD, b"other salt", 4096)),
        Credentials::Keys(ClientKeys::from_password(PASSWORD, &salt(), 4095)),
    ] {
        assert_eq!(exchange(verifier(), credentials).unwrap_err(), ScramError::InvalidProof);
    }
}

#[test]
fn the_keys_of_a_verified_client_log_in_again() {
    let keys = exchange(verifier(), password(PASSWORD)).unwrap();
    assert_eq!(exchange(verifier(), Credentials::Keys(keys.clone())).unwrap(), keys);
}

#[test]
fn an_unknown_user_looks_like_a_known_one_and_never_verifies() {
    let mock = Verifier::mock("nobody", &[7; 32]);
    assert_eq!(mock, Verifier::mock("nobody", &[7; 32]));
    assert_eq!((mock.iterations, mock.salt.len()), (4096, 16));
    for other in [Verifier::mock("somebody", &[7; 32]), Verifier::mock("nobody", &[8; 32])] {
        assert_ne!(mock.salt, other.salt);
        assert_ne!(mock.stored_key, other.stored_key);
    }
    for credentials in [
        password(""),
        password("nobody"),
        Credentials::Keys(ClientKeys { client_key: mock.stored_key, server_key: mock.server_key }),
        Credentials::Keys(ClientKeys { client_key: [0; 32], server_key: [0; 32] }),
    ] {
        assert_eq!(exchange(mock.clone(), credentials).unwrap_err(), ScramError::InvalidProof);
    }
}

#[test]
fn a_client_bound_to_this_channel_is_let_in() {
    let keys = ClientKeys::from_password(PASSWORD, &salt(), 4096);
    let verified = exchange_plus("p=tls-server-end-point,,", BINDING, BINDING).unwrap();
    assert_eq!(verified.client_key(), &keys.client_key);
}

#[test]
fn a_client_bound_to_another_channel_is_refused() {
    for (header, binding) in [
        ("p=tls-server-end-point,,", b"hash of another certificate".as_slice()),
        ("p=tls-server-end-point,,", b""),
        ("n,,", BINDING),
        ("n,,", b""),
        ("p=tls-server-end-point,a=x,", BINDING),
    ] {
        let refused = exchange_plus(header, binding, BINDING).unwrap_err();
        assert_eq!(refused, ScramError::ChannelBindingMismatch);
    }
}

#[test]
fn a_client_that_was_shown_no_channel_binding_although_there_is_one_is_refused() {
    let message = "y,,n=,r=client";
    let over_tls = ChannelBinding::Available(BINDING);
    assert_eq!(refusal(MECHANISM, over_tls, message), ScramError::ChannelBindingDowngrade);
    assert!(
        server(ChannelBinding::Unavailable).client_first(MECHANISM, message.as_bytes()).is_ok(),
        "it is right in plain text"
    );
    assert!(
        server(over_tls).client_first(MECHANISM, b"n,,n=,r=client").is_ok(),
        "a client need not know channel binding"
    );
}

#[test]
fn a_flag_that_changes_on_the_way_is_noticed() {
    // Somebody in between turned the client's `y` into `n`; the proof and `c=` are over `y`.
    let (server, _) =
        server(ChannelBinding::Available(BINDING)).client_first(MECHANISM, b"n,,n=,r=client").unwrap();
    let final_message =
        format!("c={},r=client{SERVER_NONCE},p={}", BASE64.encode("y,,"), BASE64.encode([0; 32]));
    assert_eq!(
        server.client_final(final_message.as_bytes()).unwrap_err(),
        ScramError::ChannelBindingMismatch
    );
}

#[test]
fn first_messages_against_the_rules_are_refused() {
    use ScramError as E;
    let plain = ChannelBinding::Unavailable;
    let tls = ChannelBinding::Available(BINDING);
    let plus = "p=tls-server-end-point,,n=,r=client";
    for (mechanism, binding, message, why) in [
        (MECHANISM_PLUS, plain, plus, E::UnsupportedMechanism),
        ("SCRAM-SHA-1", tls, "n,,n=,r=client", E::UnsupportedMechanism),
        ("", plain, "n,,n=,r=client", E::UnsupportedMechanism),
        (MECHANISM, tls, plus, E::ChannelBindingDisagrees),
        (MECHANISM, plain, plus, E::ChannelBindingDisagrees),
        (MECHANISM_PLUS, tls, "n,,n=,r=client", E::ChannelBindingDisagrees),
        (MECHANISM_PLUS, tls, "y,,n=,r=client", E::ChannelBindingDisagrees),
        (MECHANISM_PLUS, tls, "p=tls-unique,,n=,r=client", E::UnsupportedChannelBinding),
        (MECHANISM_PLUS, tls, "p=,,n=,r=client", E::UnsupportedChannelBinding),
        (MECHANISM, plain, "n,a=admin,n=,r=client", E::AuthorizationIdentity),
        (MECHANISM, plain, "n,,m=x,n=,r=client", E::MandatoryExtension),
        (MECHANISM, plain, "n,,n=,m=x,r=client", E::MandatoryExtension),
        (MECHANISM, plain, "n,,n=,r=client,m=x", E::MandatoryExtension),
    ] {
        assert_eq!(refusal(mechanism, binding, message), why, "{message}");
    }
    for message in [
        "",
        ",",
        ",,",
        "n",
        "n,",
        "n,,",
        "x,,n=,r=client",
        "n,b=x,n=,r=client",
        "n,,n=",
        "n,,n=,",
        "n,,n=,r=",
        "n,,r=client,n=",
        "n,,n,r=client",
        "n,,n=,r=cli ent",
        "n,,n=,r=cli\u{e9}nt",
        "n,,n=,r=client,",
        "n,,n=,r=client,x",
        "n,,n=,r=client,1=x",
        "n,,n=\0,r=client",
        "N,,n=,r=client",
        " n,,n=,r=client",
    ] {
        assert!(matches!(refusal(MECHANISM, plain, message), E::Malformed(_)), "{message:?}");
    }
    let not_utf8 = server(plain).client_first(MECHANISM, b"n,,n=\xff,r=client").unwrap_err();
    assert_eq!(not_utf8, E::Malformed("not UTF-8"));
}

#[test]
fn names_and_optional_extensions_are_ignored() {
    for message in
        ["n,,n=,r=client", "n,,n=*,r=client", "n,,n=a=2Cb\u{e9},r=client", "n,,n=,r=client,x=,Y=z=z"]
    {
        assert!(
            server(ChannelBinding::Unavailable).client_first(MECHANISM, message.as_bytes()).is_ok(),
            "{message}"
        );
    }
}

#[test]
fn final_messages_against_the_rules_are_refused() {
    use ScramError as E;
    let try_final = |message: &str| {
        let server = server(ChannelBinding::Unavailable);
        let (server, _) = server.client_first(MECHANISM, CLIENT_FIRST.as_bytes()).unwrap();
        server.client_final(message.as_bytes()).map(|_| ())
    };
    let swap = |from: &str, to: &str| try_final(&CLIENT_FINAL.replace(from, to)).unwrap_err();
    assert_eq!(try_final(CLIENT_FINAL), Ok(()));
    assert_eq!(swap("c=biws", "c=eSws"), E::ChannelBindingMismatch);
    assert_eq!(swap("k0,", "k1,"), E::NonceMismatch);
    assert_eq!(swap(SERVER_NONCE, ""), E::NonceMismatch);
    assert_eq!(swap("p=dHzb", "p=dHzc"), E::InvalidProof);
    assert_eq!(swap(",p=", ",x=y,p="), E::InvalidProof, "what the proof is over includes extensions");
    assert_eq!(swap(",p=", ",m=y,p="), E::MandatoryExtension);
    for message in [
        swap("c=biws,", ""),
        swap(",p=", ""),
        swap("VQ=", "VQ"),
        swap("VQ=", "VQ=,x=y"),
        swap("VQ=", "VQ=,p=AAAA"),
        swap(",p=", ",p=AAAA,p="),
        swap("p=dHzb", "p="),
    ] {
        assert!(matches!(message, E::Malformed(_)), "{message:?}");
    }
}

#[test]
fn long_messages_are_refused_unread() {
    let long = format!("n,,n=,r={}", "x".repeat(MAX_MESSAGE_LEN));
    let len = long.len();
    assert_eq!(refusal(MECHANISM, ChannelBinding::Unavailable, &long), ScramError::TooLong { len });
    let mut client = ClientExchange::new(password(PASSWORD), fresh_nonce());
    assert_eq!(client.challenge(long.as_bytes()), Err(ScramError::TooLong { len }));
}

#[test]
fn a_server_nonce_that_would_break_the_grammar_is_noticed() {
    for nonce in ["", "a,b", "a b", "\u{e9}"] {
        let server = ServerFirst::new(verifier(), ChannelBinding::Unavailable, nonce.to_owned());
        let refused = server.client_first(MECHANISM, CLIENT_FIRST.as_bytes()).unwrap_err();
        assert!(matches!(refused, ScramError::Misused(_)));
    }
}

#[test]
fn the_client_refuses_challenges_against_the_rules() {
    use ScramError as E;
    let challenge = |message: &str| {
        let mut client = ClientExchange::named(password(PASSWORD), NAME, CLIENT_NONCE.to_owned());
        client.challenge(message.as_bytes()).map(|_| ())
    };
    let swap = |from: &str, to: &str| challenge(&SERVER_FIRST.replace(from, to)).unwrap_err();
    assert_eq!(challenge(SERVER_FIRST), Ok(()));
    assert_eq!(swap("r=rOpr", "r=xOpr"), E::NonceMismatch);
    assert_eq!(swap(SERVER_NONCE, ""), E::NonceMismatch, "the server has to add to the nonce");
    assert_eq!(swap("i=4096", "i=0"), E::Iterations);
    assert_eq!(swap("i=4096", "i=4294967295"), E::Iterations);
    assert_eq!(swap("i=4096", "i=4096,m=x"), E::MandatoryExtension);
    assert_eq!(swap("r=", "m=x,r="), E::MandatoryExtension);
    assert_eq!(challenge("e=other-error"), Err(E::RefusedByServer));
    for refused in
        [swap(SALT, ""), swap(SALT, "!"), swap(",i=4096", ""), swap("s=", "S="), swap(SERVER_FIRST, "")]
    {
        assert!(matches!(refused, E::Malformed(_)), "{refused:?}");
    }
}

#[test]
fn the_client_refuses_a_server_that_does_not_know_the_password() {
    let mut client = ClientExchange::named(password(PASSWORD), NAME, CLIENT_NONCE.to_owned());
    assert!(matches!(client.verify(SERVER_FINAL.as_bytes()), Err(ScramError::Misused(_))));
    client.challenge(SERVER_FIRST.as_bytes()).unwrap();
    assert!(matches!(client.challenge(SERVER_FIRST.as_bytes()), Err(ScramError::Misused(_))));
    let wrong = SERVER_FINAL.replace("v=6", "v=7");
    assert_eq!(client.verify(wrong.as_bytes()), Err(ScramError::InvalidServerSignature));
    assert_eq!(client.verify(b"e=invalid-proof"), Err(ScramError::RefusedByServer));
    assert!(matches!(client.verify(b"v="), Err(ScramError::Malformed(_))));
    assert!(matches!(client.verify(b""), Err(ScramError::Malformed(_))));
    assert_eq!(client.verify(SERVER_FINAL.as_bytes()), Ok(()));
}

#[test]
fn a_client_whose_challenge_failed_verifies_nothing() {
    let mut client = ClientExchange::named(password(PASSWORD), NAME, CLIENT_NONCE.to_owned());
    assert!(client.challenge(b"").is_err());
    assert!(matches!(client.verify(SERVER_FINAL.as_bytes()), Err(ScramError::Misused(_))));
}

#[test]
fn nonces_and_salts_differ_each_time() {
    let (one, two) = (fresh_nonce(), fresh_nonce());
    assert_ne!(one, two);
    assert_eq!(one.len(), 24);
    assert!(message::is_nonce(&one));
    assert_ne!(fresh_salt(), fresh_salt());
}

#[test]
fn debug_shows_no_secret() {
    let keys = ClientKeys::from_password(PASSWORD, &salt(), 4096);
    let (last, _) =
        server(ChannelBinding::Unavailable).client_first(MECHANISM, CLIENT_FIRST.as_bytes()).unwrap();
    let client = ClientExchange::new(password(PASSWORD), CLIENT_NONCE.to_owned());
    let shown =
        format!("{:?} {keys:?} {last:?} {client:?} {:?}", verifier(), server(ChannelBinding::Unavailable));
    for secret in [PASSWORD, CLIENT_NONCE, SERVER_NONCE, "stored_key", "client_key", "server_key"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_client_gets_in_with_its_password_and_with_no_other(
        right in ".{0,20}", wrong in "[ -~]{0,20}", salt in prop::collection::vec(any::<u8>(), 1..40), rounds in 1_u32..20,
    ) {
        let verifier = Verifier::from_password(&right, &salt, rounds);
        prop_assert_eq!(&verifier.to_string().parse::<Verifier>().unwrap(), &verifier);
        let keys = exchange(verifier.clone(), password(&right)).unwrap();
        prop_assert_eq!(&keys, &ClientKeys::from_password(&right, &salt, rounds));
        if ClientKeys::from_password(&wrong, &salt, rounds) != keys {
            prop_assert_eq!(exchange(verifier, password(&wrong)).unwrap_err(), ScramError::InvalidProof);
        }
    }

    #[test]
    fn any_change_to_the_final_message_is_refused(at in 0..CLIENT_FINAL.len(), byte in any::<u8>()) {
        let server = server(ChannelBinding::Unavailable);
        let (server, _) = server.client_first(MECHANISM, CLIENT_FIRST.as_bytes()).unwrap();
        let mut message = CLIENT_FINAL.as_bytes().to_vec();
        message[at] = byte;
        prop_assert_eq!(server.client_final(&message).is_ok(), message == CLIENT_FINAL.as_bytes());
    }
}
