/* A pipe through TLS in plain C, beside which ours is measured: OpenSSL on blocking sockets.
 *
 *     tls_pipe DIR BYTES STREAMS PIECE
 *
 * DIR holds ca-cert.pem and the certificates and keys of both sides. A receiving process is forked;
 * each stream has a thread of its own at both ends. Prints the cipher and GiB/s.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *directory;
static size_t total, piece, share;
static int streams, sending;
static struct sockaddr_in address = {.sin_family = AF_INET};
static int listener;
static SSL_CTX *context;
static char *memory;
static char cipher[64];

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "tls_pipe: %s failed\n", what);
        exit(1);
    }
}

static SSL_CTX *make_context(const char *side) {
    char path[4096];
    SSL_CTX *made = SSL_CTX_new(sending ? TLS_client_method() : TLS_server_method());
    SSL_CTX_set_min_proto_version(made, TLS1_3_VERSION);
    snprintf(path, sizeof path, "%s/ca-cert.pem", directory);
    check(SSL_CTX_load_verify_locations(made, path, NULL), path);
    snprintf(path, sizeof path, "%s/%s-cert.pem", directory, side);
    check(SSL_CTX_use_certificate_chain_file(made, path), path);
    snprintf(path, sizeof path, "%s/%s-key.pem", directory, side);
    check(SSL_CTX_use_PrivateKey_file(made, path, SSL_FILETYPE_PEM), path);
    SSL_CTX_set_verify(made, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return made;
}

static void *send_stream(void *argument) {
    size_t begin = (size_t)argument * share, done = 0;
    int one = 1, sock = socket(AF_INET, SOCK_STREAM, 0);
    check(!connect(sock, (struct sockaddr *)&address, sizeof address), "connect");
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    SSL *tls = SSL_new(context);
    SSL_set_fd(tls, sock);
    check(SSL_connect(tls) == 1, "SSL_connect");
    while (done < share) {
        size_t next = share - done < piece ? share - done : piece;
        int moved = SSL_write(tls, memory + begin + done, next);
        check(moved > 0, "SSL_write");
        done += moved;
    }
    char answer;
    check(SSL_read(tls, &answer, 1) == 1, "SSL_read of the answer");
    if (!argument)
        snprintf(cipher, sizeof cipher, "%s", SSL_get_cipher(tls));
    SSL_free(tls);
    close(sock);
    return NULL;
}

static void *receive_stream(void *argument) {
    size_t begin = (size_t)argument * share, done = 0;
    int sock = accept(listener, NULL, NULL);
    check(sock >= 0, "accept");
    SSL *tls = SSL_new(context);
    SSL_set_fd(tls, sock);
    check(SSL_accept(tls) == 1, "SSL_accept");
    while (done < share) {
        size_t next = share - done < piece ? share - done : piece;
        int moved = SSL_read(tls, memory + begin + done, next);
        check(moved > 0, "SSL_read");
        done += moved;
    }
    check(SSL_write(tls, "k", 1) == 1, "SSL_write of the answer");
    SSL_free(tls);
    close(sock);
    return NULL;
}

static void run(void *(*stream)(void *)) {
    pthread_t threads[128];
    for (long n = 0; n < streams; n++)
        check(!pthread_create(&threads[n], NULL, stream, (void *)n), "pthread_create");
    for (int n = 0; n < streams; n++)
        pthread_join(threads[n], NULL);
}

static void make_memory(void) {
    unsigned long word = 88172645463325252ul;
    memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED, "mmap");
    for (size_t at = 0; at < total; at += 8) { /* xorshift: every page is there, none is zero */
        word ^= word << 13, word ^= word >> 7, word ^= word << 17;
        *(unsigned long *)(memory + at) = word;
    }
}

int main(int count, char **arguments) {
    check(count == 5, "tls_pipe DIR BYTES STREAMS PIECE: reading the arguments");
    directory = arguments[1];
    total = strtoul(arguments[2], NULL, 0);
    streams = atoi(arguments[3]);
    piece = strtoul(arguments[4], NULL, 0);
    share = total / streams;
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    check(!bind(listener, (struct sockaddr *)&address, length), "bind");
    check(!listen(listener, 128), "listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    int ready[2];
    char byte = 0;
    check(!pipe(ready), "pipe");
    pid_t receiver = fork();
    sending = receiver != 0;
    make_memory();
    context = make_context(sending ? "client" : "server");
    if (!sending) {
        check(write(ready[1], &byte, 1) == 1, "write");
        run(receive_stream);
        return 0;
    }
    check(read(ready[0], &byte, 1) == 1, "read"); /* its memory is there, too */
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    run(send_stream);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double seconds = ended.tv_sec - began.tv_sec + (ended.tv_nsec - began.tv_nsec) / 1e9;
    int status;
    waitpid(receiver, &status, 0);
    check(!status, "the receiver");
    printf("%s %.3f\n", cipher, share * streams / seconds / (1 << 30));
    return 0;
}
