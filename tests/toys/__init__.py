"""Two toy stages, in the table wherever this package is imported: also in a worker process."""

from personascope import stages
from toys import grow, tally

stages.TABLE |= {"grow": grow, "tally": tally}
TOYS = ("grow", "tally")
