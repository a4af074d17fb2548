/* service/eval/eval_tasks.c - see eval_tasks.h: what each task says and asks. Its text is put together in
 * eval_passage.c.
 *
 * About one fact stands in 64 tokens, as in the training text; least and most are each task's own. Every
 * number of a passage is said once, so that no answer is right by another fact. The asked key is the one
 * that is drawn first; where it stands is drawn for each sentence, so the order of saying gives nothing
 * away. */
#include "service/eval/eval_tasks.h"

#include "base/check.h"
#include "service/eval/eval_passage.h"
#include "service/eval/task_words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOKENS_PER_FACT = 64,
    GRID_FACTS_MIN = 4,  /* two by two: each word of the asked fact is in another one */
    GRID_SIDE_MAX = 4,   /* people or things */
    CHAIN_FACTS_MIN = 4, /* two chains */
    NOW_FACTS_MIN = 4,   /* two keys */
    NOW_PER_KEY_MAX = 4, /* the first statement and up to three that replace it */
    SIGHTS_MIN = 8,      /* TASK_COUNT_MAX, and two pairs beside the asked one */
    N_NUMBERS = 10000,   /* of TASK_DIGITS digits, leading zeros included */
    NUMBER_BYTES = 12,   /* with the NUL */
    DECK_WORDS_MAX = 32
};
static_assert(TASK_DIGITS == 4, "N_NUMBERS");

#define X(word) word,
static const char *const people[] = {TASK_PEOPLE(X)};
static const char *const things[] = {TASK_THINGS(X)};
static const char *const animals[] = {TASK_ANIMALS(X)};
#undef X

#define N_OF(list) ((uint32_t)(sizeof(list) / sizeof(list)[0]))
static_assert(N_OF(people) <= DECK_WORDS_MAX, "a deck holds all people");
static_assert(N_OF(things) <= DECK_WORDS_MAX, "a deck holds all things");

/* Shuffled words; each is drawn once. */
typedef struct deck {
    const char *words[DECK_WORDS_MAX];
    uint32_t n_left; /* the first so many */
} deck;

typedef struct teller {
    eval_draws *draws;
    deck people, things;
    uint8_t number_is_said[N_NUMBERS];
    uint32_t n_facts; /* that the context asks for */
    eval_facts *facts;
} teller;

struct eval_task {
    const char *name, *help;
    void (*tell)(teller *w); /* fills facts */
    bool takes_distance;
};

/* ---- words --------------------------------------------------------------------------------------- */

static void fill_deck(deck *d, eval_draws *draws, const char *const *words, uint32_t n_words)
{
    d->n_left = n_words;
    for (uint32_t i = 0; i < n_words; i++) { /* Fisher and Yates, from the inside */
        const uint32_t j = eval_draw_below(draws, i + 1);
        d->words[i] = d->words[j];
        d->words[j] = words[i];
    }
}

static const char *take_word(deck *d)
{
    assert(d->n_left > 0);
    d->n_left--;
    return d->words[d->n_left];
}

static const char *number_into(teller *w, char out[NUMBER_BYTES])
{
    uint32_t number;
    do {
        number = eval_draw_below(w->draws, N_NUMBERS);
    } while (w->number_is_said[number]);
    w->number_is_said[number] = 1;
    snprintf(out, NUMBER_BYTES, "%0*u", TASK_DIGITS, number);
    return out;
}

static uint32_t draw_in(teller *w, uint32_t low, uint32_t high)
{
    assert(low <= high);
    return low + eval_draw_below(w->draws, high - low + 1);
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- saying and asking --------------------------------------------------------------------------- */

/* A sentence of EVAL_SENTENCE_BYTES at `out`. */
#define WRITE_INTO(out, ...)                                              \
    do {                                                                  \
        const int n_ = snprintf((out), EVAL_SENTENCE_BYTES, __VA_ARGS__); \
        assert(n_ > 0);                                                   \
        assert(n_ < EVAL_SENTENCE_BYTES);                                 \
    } while (0)

/* The text of the next fact, to be written. */
static char *next_fact(teller *w, uint32_t place)
{
    eval_facts *f = w->facts;
    assert(f->n_facts < EVAL_FACTS_MAX);
    f->place[f->n_facts] = place;
    return f->text[f->n_facts++];
}

#define SAY_AT(w, place, ...) WRITE_INTO(next_fact((w), (place)), __VA_ARGS__)
#define SAY(w, ...)           SAY_AT((w), eval_draw((w)->draws), __VA_ARGS__)

/* The question is the sentence without its last word, which is the answer. */
static void ask(teller *w, const char *sentence)
{
    const char *const answer = strrchr(sentence, ' ');
    assert(answer != NULL);
    WRITE_INTO(w->facts->stem, "%.*s", (int)(answer - sentence), sentence);
    WRITE_INTO(w->facts->answer, "%s", answer);
}

/* ---- the tasks ----------------------------------------------------------------------------------- */

static void tell_lookup(teller *w)
{
    const uint32_t n = least(w->n_facts, least(w->people.n_left, w->things.n_left));
    for (uint32_t i = 0; i < n; i++) {
        char number[NUMBER_BYTES];
        const char *const thing = take_word(&w->things);
        SAY(w, TASK_NUMBER, thing, take_word(&w->people), number_into(w, number));
    }
    w->facts->asked = 0;
    ask(w, w->facts->text[0]);
}

typedef struct grid {
    uint32_t n_people, n_things;
} grid;

/* The grid of most facts among those of at most n; the sides change places at random. */
static grid draw_grid(teller *w, uint32_t n)
{
    grid g = {2, 2};
    for (uint32_t a = 2; a <= GRID_SIDE_MAX; a++) {
        for (uint32_t b = 2; b <= a; b++) {
            const bool is_more = a * b > g.n_people * g.n_things;
            if (a * b <= n && is_more) g = (grid){a, b};
        }
    }
    if (eval_draw_below(w->draws, 2) == 0) return g;
    return (grid){g.n_things, g.n_people};
}

static void tell_grid(teller *w, grid g)
{
    const char *who[GRID_SIDE_MAX];
    for (uint32_t i = 0; i < g.n_people; i++)
        who[i] = take_word(&w->people);
    for (uint32_t j = 0; j < g.n_things; j++) {
        const char *const thing = take_word(&w->things);
        for (uint32_t i = 0; i < g.n_people; i++) {
            char number[NUMBER_BYTES];
            SAY(w, TASK_NUMBER, thing, who[i], number_into(w, number));
        }
    }
}

static void tell_multi(teller *w)
{
    uint32_t n_left = w->n_facts < GRID_FACTS_MIN ? GRID_FACTS_MIN : w->n_facts;
    while (n_left >= GRID_FACTS_MIN) {
        const grid g = draw_grid(w, n_left);
        if (g.n_people > w->people.n_left || g.n_things > w->things.n_left) break;
        tell_grid(w, g);
        n_left -= g.n_people * g.n_things;
    }
    w->facts->asked = eval_draw_below(w->draws, w->facts->n_facts);
    ask(w, w->facts->text[w->facts->asked]);
}

/* The friend and then the friend's number: the answer begins with the last word of the first sentence. */
static void ask_chain(teller *w, const char *friendship, const char *number)
{
    const char *const last = strrchr(friendship, ' ');
    assert(last != NULL);
    WRITE_INTO(w->facts->stem, "%.*s", (int)(last - friendship), friendship);
    WRITE_INTO(w->facts->answer, "%s %s", last, number);
}

static void tell_chain(teller *w)
{
    const uint32_t n_facts = w->n_facts < CHAIN_FACTS_MIN ? CHAIN_FACTS_MIN : w->n_facts;
    const uint32_t n = least(n_facts / 2, w->people.n_left / 2);
    for (uint32_t i = 0; i < n; i++) {
        char number[NUMBER_BYTES];
        const char *const one = take_word(&w->people), *const other = take_word(&w->people);
        SAY(w, TASK_FRIEND, one, other);
        SAY(w, TASK_OWN_NUMBER, other, number_into(w, number));
    }
    ask_chain(w, w->facts->text[0], w->facts->text[1]);
}

/* Statements of one key, in the order in which they stand. */
static void tell_key(teller *w, uint32_t n)
{
    const char *const thing = take_word(&w->things), *const person = take_word(&w->people);
    uint32_t place[NOW_PER_KEY_MAX];
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t drawn = eval_draw(w->draws);
        uint32_t k = i;
        for (; k > 0 && place[k - 1] > drawn; k--)
            place[k] = place[k - 1];
        place[k] = drawn;
    }
    for (uint32_t i = 0; i < n; i++) {
        char number[NUMBER_BYTES];
        number_into(w, number);
        if (i == 0)
            SAY_AT(w, place[i], TASK_NUMBER, thing, person, number);
        else
            SAY_AT(w, place[i], TASK_NUMBER_NOW, thing, person, number);
    }
}

static void tell_overwrite(teller *w)
{
    uint32_t n_left = w->n_facts < NOW_FACTS_MIN ? NOW_FACTS_MIN : w->n_facts;
    const uint32_t n_asked = draw_in(w, 2, least(NOW_PER_KEY_MAX, n_left - 2));
    tell_key(w, n_asked);
    n_left -= n_asked;
    while (n_left >= 2 && w->people.n_left > 0 && w->things.n_left > 0) {
        const uint32_t n = draw_in(w, 2, least(NOW_PER_KEY_MAX, n_left));
        tell_key(w, n);
        n_left -= n;
    }
    ask(w, w->facts->text[n_asked - 1]);
}

static void tell_sights(teller *w, const char *person, const char *animal, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        SAY(w, TASK_SAW, person, animal);
}

/* Each person sees two kinds of animal. The second person's first kind is the asked one, so that neither
 * person nor animal alone tells which sights count. */
static void tell_count(teller *w)
{
    uint32_t n_left = w->n_facts < SIGHTS_MIN ? SIGHTS_MIN : w->n_facts;
    const char *const asked_person = take_word(&w->people);
    const uint32_t asked_animal = eval_draw_below(w->draws, N_OF(animals));
    const uint32_t n_asked = draw_in(w, 1, TASK_COUNT_MAX);
    tell_sights(w, asked_person, animals[asked_animal], n_asked);
    n_left -= n_asked;
    const char *person = asked_person;
    uint32_t animal = asked_animal;
    for (uint32_t pair = 1; n_left > 0 && (pair % 2 != 0 || w->people.n_left > 0); pair++) {
        if (pair % 2 != 0) { /* another kind */
            animal = (animal + draw_in(w, 1, N_OF(animals) - 1)) % N_OF(animals);
        } else {
            person = take_word(&w->people);
            animal = pair == 2 ? asked_animal : eval_draw_below(w->draws, N_OF(animals));
        }
        const uint32_t n_kept = pair == 1 ? 1 : 0; /* for the second person */
        const uint32_t n = draw_in(w, 1, least(TASK_COUNT_MAX, n_left - n_kept));
        tell_sights(w, person, animals[animal], n);
        n_left -= n;
    }
    char sentence[EVAL_SENTENCE_BYTES], number[NUMBER_BYTES];
    snprintf(number, sizeof number, "%u", n_asked);
    WRITE_INTO(sentence, TASK_COUNT, asked_person, animals[asked_animal], number);
    ask(w, sentence);
}

/* ---- the registry -------------------------------------------------------------------------------- */

/* A row's place goes into its random numbers: add new ones at the end. */
static const eval_task tasks[] = {
    {"lookup", "one number among facts that share neither person nor thing", tell_lookup, true},
    {"multi", "one number among facts whose people and things occur in several", tell_multi, true},
    {"chain", "the friend of a person, and then the friend's number", tell_chain, false},
    {"overwrite", "a number that was said anew up to three times", tell_overwrite, false},
    {"count", "how often somebody saw an animal", tell_count, false},
};

const eval_task *const eval_tasks[] = {&tasks[0], &tasks[1], &tasks[2], &tasks[3], &tasks[4], NULL};
static_assert(N_OF(eval_tasks) == N_OF(tasks) + 1, "every row is listed");

const eval_task *eval_task_find(const char *name, size_t n_name_bytes)
{
    for (size_t i = 0; eval_tasks[i] != NULL; i++) {
        const char *const known = eval_tasks[i]->name;
        if (strlen(known) == n_name_bytes && memcmp(known, name, n_name_bytes) == 0)
            return eval_tasks[i];
    }
    return NULL;
}

const char *eval_task_name(const eval_task *task)
{
    return task->name;
}

const char *eval_task_help(const eval_task *task)
{
    return task->help;
}

bool eval_task_takes_distance(const eval_task *task)
{
    return task->takes_distance;
}

/* ---- samples ------------------------------------------------------------------------------------- */

static err_t check_spec(const eval_sample_spec *spec, err_info *info)
{
    const uint32_t n_context = spec->n_context_tokens, n_distance = spec->n_distance_tokens;
    if (n_context < EVAL_CONTEXT_MIN || n_context > EVAL_CONTEXT_MAX)
        return err_set(info, ERR_BAD_CONFIG, "context: %u is outside [%d, %d]", n_context,
                       EVAL_CONTEXT_MIN, EVAL_CONTEXT_MAX);
    if (n_distance == 0) return ERR_OK;
    if (!spec->task->takes_distance)
        return err_set(info, ERR_BAD_CONFIG, "distance: the task %s takes none", spec->task->name);
    if (n_distance < EVAL_DISTANCE_MIN || n_distance > n_context - EVAL_DISTANCE_ROOM)
        return err_set(info, ERR_BAD_CONFIG, "distance: %u is outside [%d, %u] in a context of %u",
                       n_distance, EVAL_DISTANCE_MIN, n_context - EVAL_DISTANCE_ROOM, n_context);
    return ERR_OK;
}

/* See eval_passage.h for the layout. */
static eval_draws draws_of(const eval_sample_spec *spec)
{
    static_assert(EVAL_CONTEXT_MAX <= UINT32_MAX, "32 bits of the index");
    const uint64_t row = (uint64_t)(spec->task - tasks);
    return (eval_draws){.seed = spec->seed,
                        .stream = spec->index,
                        .index = row << 56 | (uint64_t)spec->n_context_tokens
                                                 << EVAL_DRAWS_BLOCK_BITS};
}

err_t eval_sample_open(const tokenizer *t, const eval_sample_spec *spec, eval_sample *out,
                       err_info *info)
{
    *out = (eval_sample){0};
    TRY(check_spec(spec, info));
    eval_draws draws = draws_of(spec);
    eval_facts facts = {.asked = EVAL_NO_FACT};
    teller w = {.draws = &draws,
                .n_facts = least(spec->n_context_tokens / TOKENS_PER_FACT, EVAL_FACTS_MAX),
                .facts = &facts};
    fill_deck(&w.people, &draws, people, N_OF(people));
    fill_deck(&w.things, &draws, things, N_OF(things));
    spec->task->tell(&w);
    const eval_passage_spec passage = {.t = t, .sample = spec, .facts = &facts};
    return eval_passage_write(&passage, &draws, out, info);
}

void eval_sample_close(eval_sample *s)
{
    free(s->prompt);
    free(s->answer);
    free(s->ids);
    *s = (eval_sample){0};
}

bool eval_sample_is_answered(const tokenizer *t, const eval_sample *s, const uint32_t *drawn,
                             uint32_t n_drawn)
{
    const char *rest = s->answer;
    for (uint32_t i = 0; i < n_drawn && *rest != '\0'; i++) {
        const tok_piece piece = tokenizer_piece(t, drawn[i], false);
        if (piece.is_special) return false;
        const size_t n_bytes = min_size(piece.n_bytes, strlen(rest));
        if (memcmp(rest, piece.bytes, n_bytes) != 0) return false;
        rest += n_bytes;
    }
    return *rest == '\0';
}
