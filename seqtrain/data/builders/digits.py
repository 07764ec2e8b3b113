"""What the digit corpora share: the words and their pronunciations."""

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')

# ARPAbet without stress, as in the CMU pronouncing dictionary.
LEXICON = {
    'zero': ['Z IH R OW', 'Z IY R OW'],
    'one': ['W AH N'],
    'two': ['T UW'],
    'three': ['TH R IY'],
    'four': ['F AO R'],
    'five': ['F AY V'],
    'six': ['S IH K S'],
    'seven': ['S EH V AH N'],
    'eight': ['EY T'],
    'nine': ['N AY N'],
}
