/* service/eval/eval_passage.c - see eval_passage.h. */
#include "service/eval/eval_passage.h"

#include "base/check.h"
#include "service/eval/task_words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEMO_SLOTS = 512, /* a passage has about a hundred words and as many numbers */
    MEMO_WORD_BYTES = 28,
    FILLER_TOKENS_MIN = 4, /* bounds the fillers; they have nine words */
    TRIES_MAX = 8,         /* to meet the budget; the first one does, save for odd tokenizers */
    TAIL_BYTES = EVAL_SENTENCE_BYTES + 32
};

#define X(word) word,
static const char *const walkers[] = {TASK_WALKERS(X)};
static const char *const places[] = {TASK_PLACES(X)};
static const char *const qualities[] = {TASK_QUALITIES(X)};
static const char *const fillers[] = {TASK_FILLERS(X)};
#undef X

typedef struct memo_word {
    char word[MEMO_WORD_BYTES];
    uint32_t n_ids; /* 0: the slot is empty */
} memo_word;

typedef struct sentence {
    char text[EVAL_SENTENCE_BYTES];
    uint32_t place;
    uint32_t n_ids; /* counted, with the space before it */
} sentence;

typedef struct builder {
    const tokenizer *t;
    const eval_sample_spec *spec;
    const eval_facts *facts;
    eval_draws *draws;
    memo_word *memo; /* [MEMO_SLOTS], a word in the slot of its hash; a later one drives it out */
    uint32_t n_mark_ids; /* of the mark that words are counted behind */
    sentence *sentences; /* [n_sentences_max]: the facts, then fillers as they were drawn */
    uint32_t n_sentences, n_sentences_max;
    char tail[TAIL_BYTES]; /* from the passage's end to the question's */
    int64_t n_tail_ids, n_answer_ids;
    /* The present try. */
    uint32_t n_used;    /* sentences of the passage: the first so many */
    uint64_t *order;    /* [n_sentences_max]: place << 32 | sentence, in the order of the text */
    size_t n_answer_at; /* bytes before the answer */
    size_t n_asked_end; /* bytes up to the asked fact's end; 0: none is asked */
    uint32_t next_to_asked;  /* ids of the sentence behind the asked fact; 0: it is the last one */
    int64_t n_counted;       /* ids of the whole text by count */
    int64_t n_counted_after; /* ids behind the asked fact, up to the question's end, by count */
    /* What the encoded text of the try before had beyond the count. */
    int64_t n_more, n_more_after;
} builder;

/* ---- random numbers ------------------------------------------------------------------------------ */

uint32_t eval_draw(eval_draws *d)
{
    if (d->n_left == 0) {
        d->block = random_at(d->seed, d->stream, d->index);
        d->index++;
        assert((d->index & ((1u << EVAL_DRAWS_BLOCK_BITS) - 1)) != 0); /* the next sample's */
        d->n_left = 4;
    }
    d->n_left--;
    return d->block.word[d->n_left];
}

uint32_t eval_draw_below(eval_draws *d, uint32_t n)
{
    assert(n >= 1);
    return (uint32_t)(((uint64_t)eval_draw(d) * n) >> 32);
}

/* ---- counting ------------------------------------------------------------------------------------ */

static err_t count_ids(const tokenizer *t, const char *text, uint32_t *n)
{
    uint32_t *ids;
    size_t n_ids;
    TRY(tokenizer_encode(t, &(tok_text){.bytes = text, .n_bytes = strlen(text)}, &ids, &n_ids));
    free(ids);
    *n = (uint32_t)n_ids;
    return ERR_OK;
}

static size_t memo_slot(const char *word, size_t n_bytes)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < n_bytes; i++)
        hash = (hash ^ (uint8_t)word[i]) * 16777619u;
    return (hash ^ hash >> 16) % MEMO_SLOTS;
}

/* Words are counted behind a mark, since a tokenizer may have pieces for the beginning of a text. */
static const char mark[] = "a";

static err_t count_word(builder *b, const char *word, size_t n_bytes, uint32_t *n)
{
    assert(n_bytes < MEMO_WORD_BYTES);
    memo_word *slot = &b->memo[memo_slot(word, n_bytes)];
    if (slot->n_ids == 0 || strncmp(slot->word, word, n_bytes) != 0 || slot->word[n_bytes] != 0) {
        char marked[MEMO_WORD_BYTES + sizeof mark];
        snprintf(marked, sizeof marked, "%s %.*s", mark, (int)n_bytes, word);
        uint32_t n_ids;
        TRY(count_ids(b->t, marked, &n_ids));
        slot->n_ids = n_ids > b->n_mark_ids ? n_ids - b->n_mark_ids : 1;
        memcpy(slot->word, word, n_bytes);
        slot->word[n_bytes] = '\0';
    }
    *n = slot->n_ids;
    return ERR_OK;
}

static err_t count_sentence(builder *b, sentence *s)
{
    s->n_ids = 0;
    for (const char *word = s->text; *word != '\0';) {
        const size_t n_bytes = strcspn(word, " ");
        uint32_t n;
        TRY(count_word(b, word, n_bytes, &n));
        s->n_ids += n;
        word += n_bytes + strspn(word + n_bytes, " ");
    }
    return ERR_OK;
}

/* Ids of the question and of the answer, as differences: both stand behind other text. */
static err_t count_tail(builder *b)
{
    char text[EVAL_SENTENCE_BYTES + TAIL_BYTES + EVAL_SENTENCE_BYTES];
    const char *const first = b->facts->text[0];
    uint32_t n_first, n_asked, n_answered;
    TRY(count_ids(b->t, first, &n_first));
    snprintf(text, sizeof text, "%s%s", first, b->tail);
    TRY(count_ids(b->t, text, &n_asked));
    snprintf(text, sizeof text, "%s%s%s", first, b->tail, b->facts->answer);
    TRY(count_ids(b->t, text, &n_answered));
    b->n_tail_ids = (int64_t)n_asked - n_first;
    b->n_answer_ids = (int64_t)n_answered - n_asked;
    return ERR_OK;
}

/* ---- sentences ----------------------------------------------------------------------------------- */

static err_t add_sentence(builder *b, const char *text, uint32_t place)
{
    assert(b->n_sentences < b->n_sentences_max);
    sentence *s = &b->sentences[b->n_sentences];
    const int n_bytes = snprintf(s->text, sizeof s->text, "%s", text);
    assert(n_bytes >= 0);
    assert((size_t)n_bytes < sizeof s->text);
    s->place = place;
    TRY(count_sentence(b, s));
    b->n_sentences++;
    return ERR_OK;
}

static err_t add_filler(builder *b)
{
#define DRAW_WORD(list) ((list)[eval_draw_below(b->draws, sizeof(list) / sizeof(list)[0])])
    const char *const form = DRAW_WORD(fillers);
    const char *const walker = DRAW_WORD(walkers);
    const char *const place = DRAW_WORD(places);
    const char *const quality = DRAW_WORD(qualities);
#undef DRAW_WORD
    char text[EVAL_SENTENCE_BYTES];
    snprintf(text, sizeof text, form, walker, place, quality);
    return add_sentence(b, text, eval_draw(b->draws));
}

static uint32_t n_bos(const builder *b)
{
    return tokenizer_adds_bos(b->t) ? 1 : 0;
}

/* Uses the facts, and fillers in the order of drawing until the next one is too long. */
static err_t fit(builder *b, err_info *info)
{
    const int64_t n_room = b->spec->n_context_tokens;
    int64_t n_ids = n_bos(b) + b->n_tail_ids + b->n_answer_ids + b->n_more;
    for (b->n_used = 0; b->n_used < b->n_sentences_max; b->n_used++) {
        if (b->n_used == b->n_sentences) TRY(add_filler(b));
        const uint32_t n_next = b->sentences[b->n_used].n_ids;
        if (b->n_used >= b->facts->n_facts && n_ids + n_next > n_room) break;
        n_ids += n_next;
    }
    if (n_ids > n_room)
        return err_set(info, ERR_BAD_CONFIG,
                       "context: %u tokens do not hold the question and the facts of %s, which "
                       "take %lld of this tokenizer's",
                       b->spec->n_context_tokens, eval_task_name(b->spec->task), (long long)n_ids);
    b->n_counted = n_ids - b->n_more;
    return ERR_OK;
}

/* ---- order --------------------------------------------------------------------------------------- */

static int compare_places(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The sorted asked fact goes to where at least so many ids stand behind it, and no sentence more. */
static err_t move_asked(builder *b, uint32_t n_distance, err_info *info)
{
    uint32_t from = 0;
    while ((uint32_t)b->order[from] != b->facts->asked)
        from++;
    const uint64_t asked = b->order[from];
    memmove(&b->order[from], &b->order[from + 1], (b->n_used - from - 1) * sizeof *b->order);
    int64_t n_after = b->n_tail_ids + b->n_more_after;
    if (n_distance < n_after)
        return err_set(info, ERR_BAD_CONFIG, "distance: %u is less than the %lld of the question",
                       n_distance, (long long)n_after);
    uint32_t to = b->n_used - 1;
    for (; to > 0 && n_after < n_distance; to--)
        n_after += b->sentences[(uint32_t)b->order[to - 1]].n_ids;
    if (n_after < n_distance)
        return err_set(info, ERR_BAD_CONFIG,
                       "distance: %u is more than the %lld that a context of %u holds", n_distance,
                       (long long)n_after, b->spec->n_context_tokens);
    memmove(&b->order[to + 1], &b->order[to], (b->n_used - to - 1) * sizeof *b->order);
    b->order[to] = asked;
    return ERR_OK;
}

static err_t put_in_order(builder *b, err_info *info)
{
    for (uint32_t i = 0; i < b->n_used; i++)
        b->order[i] = (uint64_t)b->sentences[i].place << 32 | i;
    qsort(b->order, b->n_used, sizeof *b->order, compare_places);
    if (b->spec->n_distance_tokens == 0) return ERR_OK;
    return move_asked(b, b->spec->n_distance_tokens, info);
}

/* ---- text ---------------------------------------------------------------------------------------- */

static size_t text_bytes(const builder *b)
{
    size_t n_bytes = strlen(b->tail) + strlen(b->facts->answer) + 1;
    for (uint32_t i = 0; i < b->n_used; i++)
        n_bytes += strlen(b->sentences[i].text) + 1;
    return n_bytes;
}

/* Passage, question and answer. */
static err_t write_text(builder *b, char **out)
{
    char *const text = malloc(text_bytes(b));
    if (text == NULL) return ERR_NO_MEMORY;
    char *end = text;
    b->n_asked_end = 0;
    b->next_to_asked = 0;
    b->n_counted_after = b->n_tail_ids;
    for (uint32_t i = 0; i < b->n_used; i++) {
        const uint32_t number = (uint32_t)b->order[i];
        const sentence *s = &b->sentences[number];
        if (i > 0) *end++ = ' ';
        end = stpcpy(end, s->text);
        if (number == b->facts->asked) {
            b->n_asked_end = (size_t)(end - text);
        } else if (b->n_asked_end > 0) {
            if (b->next_to_asked == 0) b->next_to_asked = s->n_ids;
            b->n_counted_after += s->n_ids;
        }
    }
    end = stpcpy(end, b->tail);
    b->n_answer_at = (size_t)(end - text);
    stpcpy(end, b->facts->answer);
    *out = text;
    return ERR_OK;
}

/* How many of the last ids stand for nothing but the text's last n_bytes. */
static uint32_t n_ids_within(const tokenizer *t, const uint32_t *ids, size_t n_ids, size_t n_bytes)
{
    uint32_t n = 0;
    for (size_t n_seen = 0; n < n_ids; n++) {
        n_seen += tokenizer_piece(t, ids[n_ids - 1 - n], false).n_bytes;
        if (n_seen > n_bytes) break;
    }
    return n;
}

/* One try: out owns its parts afterwards, whatever is returned. */
static err_t try_once(builder *b, eval_sample *out, err_info *info)
{
    TRY(fit(b, info));
    TRY(put_in_order(b, info));
    TRY(write_text(b, &out->prompt));
    const size_t n_bytes = strlen(out->prompt);
    const tok_text text = {.bytes = out->prompt, .n_bytes = n_bytes, .add_bos = n_bos(b) > 0};
    size_t n_ids;
    TRY(tokenizer_encode(b->t, &text, &out->ids, &n_ids));
    out->n_answer_ids = n_ids_within(b->t, out->ids, n_ids, n_bytes - b->n_answer_at);
    out->n_ids = (uint32_t)n_ids - out->n_answer_ids;
    if (b->n_asked_end > 0)
        out->n_distance_tokens =
            n_ids_within(b->t, out->ids, n_ids, n_bytes - b->n_asked_end) - out->n_answer_ids;
    out->prompt[b->n_answer_at] = '\0';
    out->answer = strdup(b->facts->answer);
    if (out->answer == NULL) return ERR_NO_MEMORY;
    if (!eval_sample_is_answered(b->t, out, out->ids + out->n_ids, out->n_answer_ids))
        return err_set(info, ERR_BAD_MODEL,
                       "the tokenizer has no token boundary between the question \"%s\" and its "
                       "answer \"%s\"",
                       b->facts->stem, b->facts->answer);
    return ERR_OK;
}

/* Takes what the count was off into account; true if the try can stand. A count that was off has one
 * more try even if the text fits, for it may be too short. */
static bool is_settled(builder *b, const eval_sample *s, uint32_t n_tries)
{
    const int64_t n_ids = (int64_t)s->n_ids + s->n_answer_ids;
    const int64_t n_wanted = b->spec->n_distance_tokens;
    const int64_t n_after = s->n_distance_tokens;
    const int64_t n_more = n_ids - b->n_counted;
    const int64_t n_more_after = n_wanted > 0 ? n_after - b->n_counted_after : 0;
    const bool is_as_counted = n_more == b->n_more && n_more_after == b->n_more_after;
    const bool is_there = n_after >= n_wanted && n_after - b->next_to_asked <= n_wanted;
    const bool fits = n_ids <= b->spec->n_context_tokens && (n_wanted == 0 || is_there);
    b->n_more = n_more;
    b->n_more_after = n_more_after;
    return fits && (is_as_counted || n_tries + 2 >= TRIES_MAX);
}

static err_t build(builder *b, eval_sample *out, err_info *info)
{
    const int n_bytes =
        snprintf(b->tail, sizeof b->tail, "\n%s\n%s", TASK_QUESTIONS, b->facts->stem);
    assert(n_bytes >= 0);
    assert((size_t)n_bytes < sizeof b->tail);
    TRY(count_ids(b->t, mark, &b->n_mark_ids));
    TRY(count_tail(b));
    for (uint32_t i = 0; i < b->facts->n_facts; i++)
        TRY(add_sentence(b, b->facts->text[i], b->facts->place[i]));
    for (uint32_t n_tries = 0; n_tries < TRIES_MAX; n_tries++) {
        TRY(try_once(b, out, info));
        if (is_settled(b, out, n_tries)) return ERR_OK;
        eval_sample_close(out);
    }
    return err_set(info, ERR_BAD_MODEL,
                   "the tokenizer gives a passage another number of tokens than its words, and no "
                   "passage of %u tokens was found",
                   b->spec->n_context_tokens);
}

err_t eval_passage_write(const eval_passage_spec *spec, eval_draws *draws, eval_sample *out,
                         err_info *info)
{
    assert(spec->facts->n_facts >= 1);
    assert(spec->facts->n_facts <= EVAL_FACTS_MAX);
    *out = (eval_sample){0};
    builder b = {.t = spec->t,
                 .spec = spec->sample,
                 .facts = spec->facts,
                 .draws = draws,
                 .n_sentences_max =
                     spec->facts->n_facts + spec->sample->n_context_tokens / FILLER_TOKENS_MIN};
    b.memo = calloc(MEMO_SLOTS, sizeof *b.memo);
    b.sentences = calloc(b.n_sentences_max, sizeof *b.sentences);
    b.order = calloc(b.n_sentences_max, sizeof *b.order);
    const bool has_all = b.memo != NULL && b.sentences != NULL && b.order != NULL;
    const err_t err = has_all ? build(&b, out, info) : ERR_NO_MEMORY;
    if (err != ERR_OK) eval_sample_close(out);
    free(b.memo);
    free(b.sentences);
    free(b.order);
    if (err == ERR_NO_MEMORY) return err_set(info, err, "memory for a passage");
    return err;
}
