/* service/eval/task_words.h - the words and sentences of the look-up tasks.
 *
 * One source for two programs: `pikv eval --tasks` writes its questions from these lists, and
 * tools/lookup_text.py reads this file to write the training text, so the two cannot drift apart. Keep the
 * form NAME(ITEM) with one list a macro, and plain %s in sentences. Every word is one piece of the default
 * model's vocabulary; people of facts and people of filler are different, so that filler never says
 * anything about a key.
 *
 * A passage is sentences joined by a space. Questions follow on lines of their own, each a sentence that
 * stops where its answer begins; the answer runs to the full stop that ends the line. */
#ifndef SERVICE_EVAL_TASK_WORDS_H
#define SERVICE_EVAL_TASK_WORDS_H

/* clang-format off */
#define TASK_PEOPLE(X) \
    X("Anna") X("Peter") X("Mary") X("John") X("Jack") X("Ben") X("Sam") X("Tim") X("Lily") X("Max") X("Sara") \
    X("Jane") X("Alice") X("Henry") X("James") X("Robert") X("Paul") X("Emma") X("Polly") X("Martha") X("Meg") \
    X("Amy") X("Beth") X("Bob") X("Joe") X("Hans") X("Gerda") X("Wendy") X("Heidi") X("Clara") X("Bill") X("Jim")

#define TASK_THINGS(X) \
    X("lamp") X("key") X("ring") X("box") X("book") X("cup") X("hat") X("bag") X("ball") X("bell") X("boat") \
    X("knife") X("chair") X("coat") X("stone") X("apple") X("sword") X("cart") X("basket") X("bottle") X("flower") \
    X("chest") X("crown") X("dress") X("pen") X("rope") X("pot") X("cap") X("cake") X("shirt") X("doll") X("feather")

#define TASK_ANIMALS(X) \
    X("bird") X("fish") X("dog") X("cat") X("cow") X("horse")

#define TASK_WALKERS(X) \
    X("Tom") X("Dorothy") X("Tommy") X("Laurie") X("Dick") X("Andrew") X("Phil") X("Cyril") X("Anthea") X("Daisy")

#define TASK_PLACES(X) \
    X("house") X("garden") X("tree") X("river") X("wood") X("hill") X("sea") X("road") X("town") X("mill") X("gate") \
    X("window") X("field") X("door")

#define TASK_QUALITIES(X) \
    X("old") X("little") X("great") X("white") X("green") X("red") X("dark") X("quiet") X("beautiful") X("cold") \
    X("warm") X("new")

/* Filler: a walker, a place and a quality in this order. */
#define TASK_FILLERS(X) \
    X("%s went to the %s and found it %s.") \
    X("%s sat by the %s, for it was %s there.") \
    X("%s came home from the %s, which was %s.") \
    X("%s looked at the %s and said that it was %s.") \
    X("%s walked past the %s on a %s morning.") \
    X("%s thought of the %s and the %s day.")

#define TASK_NUMBER     "The number of the %s of %s is %s."     /* thing, person, digits */
#define TASK_NUMBER_NOW "The number of the %s of %s is now %s." /* thing, person, digits: replaces what was said */
#define TASK_FRIEND     "The friend of %s is %s."               /* person, person */
#define TASK_OWN_NUMBER "The number of %s is %s."               /* person, digits */
#define TASK_SAW        "%s saw a %s."                          /* person, animal */
#define TASK_COUNT      "The times that %s saw a %s: %s."       /* person, animal, digits */
#define TASK_QUESTIONS  "Questions:"                            /* the line between passage and questions */
/* clang-format on */

enum {
    TASK_DIGITS = 4,   /* of every number */
    TASK_COUNT_MAX = 6 /* sights of one kind */
};

#endif
