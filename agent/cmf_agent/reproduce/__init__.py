"""`cmf-agent reproduce`: what it takes to run an execution again, what of it is at hand, and laying it out in a folder."""
