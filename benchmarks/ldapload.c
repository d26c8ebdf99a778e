/*
 * A load generator for LDAP servers, compiled because an interpreter would be slower than what it measures.
 *
 *   ldapload PORT CONNECTIONS WINDOW SECONDS PLAN LATENCIES
 *
 * Every connection is bound, and then has WINDOW searches under way: when one has its whole answer, the next is sent.
 * It ends when the plan's searches have been asked (SECONDS = 0) or, asking them round and round, after SECONDS.
 * Every answer is checked: its framing, its message id, its result code, how many entries came, and that the expected
 * bytes are in each. PLAN is what benchmarks/ldapload.py writes: counts and lengths as 32 bits in host order:
 *
 *   length, the whole bind request; number of searches, and for each of them:
 *   length, the message up to its id's value; length, what follows the id; entries; length, bytes that each entry has
 *
 * Standard output gets "count wrong seconds waited" and a line for each of the first wrong answers; LATENCIES gets one
 * 64 bit number of nanoseconds for each answer. Any other trouble is told on standard error, with status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_BYTES = 1 << 20,      /* of one connection; no entry is larger */
    WINDOW_MOST = 64,          /* searches under way on a connection */
    REQUEST_BYTES = 4096,      /* the largest search */
    EVENTS = 512,              /* connections looked at per wait */
    ANSWER_MILLISECONDS = 20000, /* an answer that takes longer has gone wrong */
    DESCRIBED = 5,             /* wrong answers that are told */
    FIRST_ID = 0x01000000,     /* four octets, and so are all that follow */
    ENTRY = 0x64,
    DONE = 0x65,
};

struct search {
    uint32_t head_length, tail_length, entries, contains_length;
    const unsigned char *head, *tail, *contains;
};

struct slot {
    uint32_t id, entries, without; /* id 0: free; without: entries that lack the expected bytes */
    const struct search *search;
    int64_t sent_at;
};

struct connection {
    int socket;
    uint32_t last_id;
    size_t length; /* of what has been read and not looked at */
    unsigned char *data;
    struct slot slots[WINDOW_MOST];
};

static struct search *searches;
static uint32_t search_count, window, next_search;
static int round_and_round;
static int64_t over_at, *latencies;
static size_t answered, asked, wrong, latencies_most;

static void fail(const char *what)
{
    fprintf(stderr, "ldapload: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void *room(size_t bytes)
{
    void *made = calloc(1, bytes);
    if (made == NULL)
        fail("no memory");
    return made;
}

static uint32_t number(FILE *plan)
{
    uint32_t value;
    if (fread(&value, sizeof value, 1, plan) != 1)
        fail("the plan ends early");
    return value;
}

static unsigned char *bytes(FILE *plan, uint32_t length)
{
    unsigned char *made = room(length + 1);
    if (fread(made, 1, length, plan) != length)
        fail("the plan ends early");
    return made;
}

/* The element at data: where its content begins, and its length in all; 0 when it is not all there. */
static size_t element(const unsigned char *data, size_t size, size_t *content)
{
    size_t length, start = 2;
    if (size < 2)
        return 0;
    length = data[1];
    if (length & 0x80) {
        size_t octets = length & 0x7f;
        if (octets == 0 || octets > 4)
            fail("an element without a definite length");
        if (size < 2 + octets)
            return 0;
        for (length = 0; octets > 0; octets--)
            length = length << 8 | data[start++];
    }
    *content = start;
    return size < start + length ? 0 : start + length;
}

static void write_all(int socket, const unsigned char *data, size_t length)
{
    ssize_t written = write(socket, data, length);
    if (written < 0 || (size_t)written != length)
        fail("the socket's buffer does not take the requests");
}

static void open_connection(struct connection *made, int port, const unsigned char *bind, uint32_t bind_length)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    size_t content, whole, place;
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    made->data = room(READ_BYTES);
    made->last_id = FIRST_ID;
    made->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (made->socket < 0 || connect(made->socket, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(made->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    write_all(made->socket, bind, bind_length);
    while ((whole = element(made->data, made->length, &content)) == 0) {
        ssize_t got = read(made->socket, made->data + made->length, READ_BYTES - made->length);
        if (got <= 0)
            fail("no answer to the bind");
        made->length += (size_t)got;
    }
    /* id, then the operation's tag and short length, 0A 01, the code */
    place = content + 2 + made->data[content + 1];
    if (whole != made->length || made->data[place] != 0x61 || made->data[place + 4] != 0)
        fail("the bind is refused");
    made->length = 0;
}

static int ask(struct connection *c, struct slot *slot, unsigned char *out, size_t *length)
{
    const struct search *search;
    uint32_t id;
    if (round_and_round ? now() >= over_at : next_search == search_count)
        return 0;
    search = &searches[next_search++];
    if (round_and_round && next_search == search_count)
        next_search = 0;
    slot->search = search;
    slot->entries = slot->without = 0;
    slot->id = ++c->last_id;
    id = htonl(slot->id);
    memcpy(out + *length, search->head, search->head_length);
    *length += search->head_length;
    memcpy(out + *length, &id, 4);
    *length += 4;
    memcpy(out + *length, search->tail, search->tail_length);
    *length += search->tail_length;
    slot->sent_at = now();
    asked++;
    return 1;
}

static void wrong_answer(const struct search *search, int code, const struct slot *slot)
{
    if (wrong++ < DESCRIBED)
        printf("search %zu: code %d, %u entries instead of %u, %u of them others than asked for\n",
               (size_t)(search - searches), code, slot->entries, search->entries, slot->without);
}

static void ended(struct slot *slot, const unsigned char *operation)
{
    /* DONE, a length, 0A 01, the code */
    int code = operation[1] & 0x80 ? operation[4 + (operation[1] & 0x7f)] : operation[4];
    if (code != 0 || slot->entries != slot->search->entries || slot->without != 0)
        wrong_answer(slot->search, code, slot);
    if (answered == latencies_most) {
        latencies_most = latencies_most ? 2 * latencies_most : 1 << 16;
        latencies = realloc(latencies, latencies_most * sizeof *latencies);
        if (latencies == NULL)
            fail("no memory");
    }
    latencies[answered++] = now() - slot->sent_at;
    slot->id = 0;
}

static void readable(struct connection *c)
{
    static unsigned char out[WINDOW_MOST * REQUEST_BYTES];
    size_t place = 0, length = 0, content, whole;
    ssize_t got = read(c->socket, c->data + c->length, READ_BYTES - c->length);
    if (got <= 0)
        fail("the server closed a connection");
    c->length += (size_t)got;
    while ((whole = element(c->data + place, c->length - place, &content)) != 0) {
        const unsigned char *message = c->data + place, *operation = message + content + 6;
        uint32_t id, at;
        struct slot *slot = NULL;
        if (whole < content + 11 || message[content] != 0x02 || message[content + 1] != 4)
            fail("an answer to no search of ours");
        memcpy(&id, message + content + 2, 4);
        id = ntohl(id);
        for (at = 0; at < window && slot == NULL; at++)
            if (c->slots[at].id == id)
                slot = &c->slots[at];
        if (slot == NULL)
            fail("an answer to no search under way");
        if (operation[0] == ENTRY) {
            slot->entries++;
            if (memmem(operation, whole - content - 6, slot->search->contains, slot->search->contains_length) == NULL)
                slot->without++;
        } else if (operation[0] == DONE) {
            ended(slot, operation);
            ask(c, slot, out, &length);
        } else {
            fail("an answer that is none to a search");
        }
        place += whole;
    }
    if (place > 0) {
        memmove(c->data, c->data + place, c->length - place);
        c->length -= place;
    } else if (c->length == READ_BYTES) {
        fail("an entry that is too large");
    }
    if (length > 0)
        write_all(c->socket, out, length);
}

int main(int argc, char **argv)
{
    static unsigned char out[WINDOW_MOST * REQUEST_BYTES];
    struct epoll_event events[EVENTS];
    struct connection *connections;
    unsigned char *bind;
    uint32_t bind_length, at;
    int64_t begun, waited = 0;
    int poller, count, connection_count;
    FILE *plan, *file;

    if (argc != 7)
        fail("usage: ldapload PORT CONNECTIONS WINDOW SECONDS PLAN LATENCIES");
    connection_count = atoi(argv[2]);
    window = (uint32_t)atoi(argv[3]);
    if (connection_count < 1 || window < 1 || window > WINDOW_MOST)
        fail("how many?");
    plan = fopen(argv[5], "rb");
    if (plan == NULL)
        fail(argv[5]);
    bind_length = number(plan);
    bind = bytes(plan, bind_length);
    search_count = number(plan);
    searches = room((search_count + 1) * sizeof *searches);
    for (at = 0; at < search_count; at++) {
        struct search *s = &searches[at];
        s->head_length = number(plan);
        s->head = bytes(plan, s->head_length);
        s->tail_length = number(plan);
        s->tail = bytes(plan, s->tail_length);
        s->entries = number(plan);
        s->contains_length = number(plan);
        s->contains = bytes(plan, s->contains_length);
        if (s->head_length + s->tail_length + 4 > REQUEST_BYTES)
            fail("a search that is too large");
    }
    fclose(plan);

    poller = epoll_create1(0);
    connections = room((size_t)connection_count * sizeof *connections);
    for (count = 0; count < connection_count; count++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[count]};
        open_connection(&connections[count], atoi(argv[1]), bind, bind_length);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, connections[count].socket, &event))
            fail("epoll");
    }
    round_and_round = atof(argv[4]) > 0;
    begun = now();
    over_at = begun + (int64_t)(atof(argv[4]) * 1e9);
    for (count = 0; count < connection_count; count++) {
        size_t length = 0;
        for (at = 0; at < window && ask(&connections[count], &connections[count].slots[at], out, &length); at++)
            continue;
        if (length > 0)
            write_all(connections[count].socket, out, length);
    }
    while (answered < asked) {
        int64_t before = now();
        int ready = epoll_wait(poller, events, EVENTS, ANSWER_MILLISECONDS);
        waited += now() - before;
        if (ready < 0 && errno != EINTR)
            fail("epoll");
        if (ready == 0) {
            errno = 0;
            fail("an answer does not come");
        }
        for (count = 0; count < ready; count++)
            readable(events[count].data.ptr);
    }
    printf("%zu %zu %.9f %.9f\n", answered, wrong, (double)(now() - begun) / 1e9, (double)waited / 1e9);
    file = fopen(argv[6], "wb");
    if (file == NULL || fwrite(latencies, sizeof *latencies, answered, file) != answered || fclose(file))
        fail(argv[6]);
    return 0;
}
