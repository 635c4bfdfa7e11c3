//! What no safe library of sockets has yet.

use std::{net::TcpStream, os::fd::AsRawFd as _, time::Duration};

unsafe extern "C" {
    fn llm2clip_bound_resend(socket: i32, milliseconds: i32) -> bool;
}

/// Bounds how long TCP waits before it sends again what was not acknowledged: by itself it doubles that wait up to two minutes
/// (`TCP_RTO_MAX_MS`, Linux 6.15). False where the kernel cannot.
pub fn bound_resend(stream: &TcpStream, longest: Duration) -> bool {
    let milliseconds = i32::try_from(longest.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: it takes two numbers, and the borrow keeps the socket open meanwhile.
    unsafe { llm2clip_bound_resend(stream.as_raw_fd(), milliseconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_can_takes_it_and_refuses_what_it_cannot() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let can = std::path::Path::new("/proc/sys/net/ipv4/tcp_rto_max_ms").exists();
        assert_eq!(bound_resend(&stream, Duration::from_millis(1_500)), can);
        assert!(!bound_resend(&stream, Duration::ZERO));
    }
}
