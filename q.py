import sys; sys.path.insert(0,"tests")
import torch
from tokenscope.core.steps import *
from tokenscope.core.small_models import word_tokenizer
from tokenscope.core.scope import Scope
from tokenscope.lenses.step_sae import *
tok=word_tokenizer(["<sep>", *STYLES, *OPERATORS, "careful", "careless", "=", *map(str, range(10))])
from architectures import tiny
pairs=chain_pairs(arithmetic_chains(6,seed=3))[0]
s2=Scope(tiny("llama",vocab_size=len(tok),max_position_embeddings=128),tok)
kw=dict(sep="=",eos="=")
w=torch.arange(4,9)
a=read_steps(s2,pairs,w,1,**kw); 
for i,p in enumerate(pairs):
    b=read_steps(s2,[p],w,1,**kw); m=b.own.shape[1]
    assert torch.allclose(a.state[i],b.state[0],atol=1e-4) and torch.allclose(a.own[i,:m],b.own[0],atol=1e-4), i
f=FrozenStepSAE(s2,[s for _,s in pairs],n=16,**kw); f.fit(pairs,steps=3,batch_size=4); print(conditional_gain(f,pairs).mean().to_dict())
f=FrozenStepSAE(s2,["so"],layer=-1,**kw); print(f.prepare(pairs).state.shape, step_codes(f,pairs[:1]).shape)
