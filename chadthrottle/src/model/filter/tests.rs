use proptest::prelude::*;

use super::*;
use crate::model::{
    LimitId, Protocol, State,
    snapshot::tests::{connection, process},
};

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn snapshot() -> Snapshot {
    let mut firefox = process(10, 1, "Firefox");
    firefox.user = "alice".into();
    firefox.rx_rate = 2_000_000;
    firefox.tx_rate = 10_000;
    firefox.limits = vec![LimitId(1)];
    let mut curl = process(20, 1, "curl");
    curl.cmdline = "curl https://example.org/a:b".into();
    curl.user = "bob".into();
    curl.alive = false;
    let sshd = process(30, 1, "sshd");
    let mut listener = connection(&sshd, "[::]:22", None);
    listener.state = State::Listen;
    let mut dns = connection(&curl, "[2001:db8::5]:5000", Some("[2001:db8::1]:53"));
    dns.protocol = Protocol::Udp;
    Snapshot {
        connections: vec![
            connection(&firefox, "192.0.2.9:4000", Some("192.0.2.1:443")),
            connection(&firefox, "192.0.2.9:4001", Some("198.51.100.7:80")),
            dns,
            listener,
        ],
        processes: vec![firefox, curl, sshd],
        ..Snapshot::default()
    }
}

#[test]
fn every_key() {
    let snapshot = snapshot();
    for (text, expected) in [
        ("", &[0, 1, 2][..]),
        ("  ", &[0, 1, 2]),
        ("fire", &[0]),
        ("FRFX", &[0]),
        ("xff", &[]),
        ("example.org", &[1]),
        ("20", &[1]),
        ("alice", &[0]),
        ("-alice", &[1, 2]),
        ("\"org/a:b\"", &[1]),
        ("https://example.org", &[1]),
        ("name:fire", &[0]),
        ("name:fire,ssh", &[0, 2]),
        ("-name:fire,ssh", &[1]),
        ("name:frfx", &[]),
        ("exe:/usr/bin/s", &[2]),
        ("cmd:example", &[1]),
        ("user:alice", &[0]),
        ("user:al", &[]),
        ("USER:Alice", &[0]),
        ("unit:curl.service", &[1]),
        ("container:abc", &[]),
        ("cgroup:/system.slice", &[0, 1, 2]),
        ("pid:10,30", &[0, 2]),
        ("port:443", &[0]),
        ("port:22", &[2]),
        ("port:53,22", &[1, 2]),
        ("-port:443", &[0, 1, 2]),
        ("port:443 remote:192.0.2.0/24", &[0]),
        ("port:80 remote:192.0.2.0/24", &[]),
        ("remote:2001:db8::/32", &[1]),
        ("remote:[2001:db8::1]", &[1]),
        ("remote:0.0.0.0/0", &[0]),
        ("proto:udp", &[1]),
        ("proto:tcp", &[0, 2]),
        ("state:listen", &[2]),
        ("rate:>1M", &[0]),
        ("rate:>=2.01M", &[0]),
        ("rate:>2.01M", &[]),
        ("rate:1M", &[0]),
        ("down:<1000", &[1, 2]),
        ("up:>=80kbit", &[0]),
        ("rate:<=30", &[1, 2]),
        ("rate:>0", &[0, 1, 2]),
        ("-", &[0, 1, 2]),
        ("10.0.0.1:80", &[]),
        ("rate:>99999999999999999999999T", &[]),
        ("limited:yes", &[0]),
        ("limited:no", &[1, 2]),
        ("alive:no", &[1]),
        ("fire user:alice rate:>1M limited:yes port:443", &[0]),
        ("fire user:bob", &[]),
    ] {
        assert_eq!(filter(text).select(&snapshot), expected, "{text}");
    }
    assert!(filter("port:1").needs_connections() && !filter("rate:>1").needs_connections());
    assert!(filter("").is_empty());
    let only_http = filter("fire port:80");
    let shown: Vec<_> =
        snapshot.connections.iter().filter(|connection| only_http.matches_connection(connection)).collect();
    assert_eq!(shown.len(), 1);
}

#[test]
fn every_refusal_says_why() {
    for (text, why) in [
        ("foo:bar", "unknown key 'foo'; keys are pid, name"),
        ("port:", "port: wants a value"),
        ("port:http", "'http' is no port"),
        ("port:70000", "no port"),
        ("pid:x", "no process id"),
        ("remote:example.org", "no address"),
        ("remote:10.0.0.0/33", "no address"),
        ("rate:>fast", "'fast' is no rate"),
        ("rate:>", "no rate"),
        ("rate:>10Mb", "10Mbit for bits"),
        ("limited:maybe", "limited: is yes or no"),
        ("name:\"a b", "quotation mark"),
    ] {
        let error = text.parse::<Filter>().expect_err(text);
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains(why), "{text}: {error}");
    }
}

#[test]
fn quotation_marks_hold_together() {
    let mut tmux = process(1, 0, "tmux: server");
    let matches = |text: &str, process: &Process| filter(text).matches(process, [], &|_| false);
    assert!(matches("\"tmux: server\"", &tmux));
    assert!(matches("name:\"tmux: s\" user:root", &tmux));
    assert!(!matches("-\"tmux: server\"", &tmux));
    tmux.name = "-".into();
    assert!(matches("name:-", &tmux));
}

proptest! {
    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        if let Ok(filter) = text.parse::<Filter>() {
            filter.select(&snapshot());
        }
    }

    #[test]
    fn networks_hold_what_begins_alike(address in any::<u32>(), other in any::<u32>(), bits in 0u32..=32) {
        let text = format!("{}/{bits}", std::net::Ipv4Addr::from(address));
        let network = Network::parse(&text).unwrap();
        let alike = u64::from(address) >> (32 - bits) == u64::from(other) >> (32 - bits);
        prop_assert_eq!(network.contains(std::net::Ipv4Addr::from(other).into()), alike);
    }
}
