// A socket option that the headers of most systems do not name yet.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44  // Linux 6.15
#endif

extern "C" {

// Bounds the wait of TCP before it sends again; false where the kernel cannot.
bool llm2clip_bound_resend(int socket, int milliseconds) {
  return setsockopt(socket, IPPROTO_TCP, TCP_RTO_MAX_MS, &milliseconds, sizeof milliseconds) == 0;
}

}
