//! A member of an etcd whose members have a host each.

use std::{path::Path, process::Command};

/// What tells etcd that it is the member on the `number`-th of these hosts, with its data below `folder`.
pub(crate) fn member(command: &mut Command, hosts: &[String], number: usize, folder: &Path) {
    let peer = |number: usize| format!("http://{}:2380", hosts[number]);
    let cluster: Vec<String> = (0..hosts.len()).map(|number| format!("m{number}={}", peer(number))).collect();
    let own = format!("http://{}:2379", hosts[number]);
    command
        .args(["--name", &format!("m{number}"), "--logger", "zap", "--log-outputs", "default"])
        .args(["--listen-client-urls", &own, "--advertise-client-urls", &own])
        .args(["--listen-peer-urls", &peer(number), "--initial-advertise-peer-urls", &peer(number)])
        .args(["--initial-cluster", &cluster.join(",")])
        .arg("--data-dir")
        .arg(folder.join(format!("etcd-{number}")));
}
